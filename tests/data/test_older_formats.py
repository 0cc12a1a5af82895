"""Files that an earlier release wrote are read: an index and a ledger, kept in tests/fixtures."""

from __future__ import annotations

import shutil
from pathlib import Path

from swav_platform.data.index.lookup import Index
from swav_platform.data.ledger.ledger import Ledger


def test_an_index_of_format_2_is_read(root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(root / "tests" / "fixtures" / "index-format-2", tmp_path / "index")
    index = Index.open(folder)
    assert index.digest == "4c12fc50354ebe69fe5c82068ee3707d"
    lines = index.lines(range(index.samples))
    assert [line.key for line in lines] == ["cats/00", "cats/01", "cats/02", "cats/10", "cats/11", "cats/12"]
    assert {line.label for line in lines} == {"cats"}
    assert [Path(line.shard).name for line in lines[2:4]] == ["shard-000000.tar", "shard-000001.tar"]
    assert [line.offset % 512 for line in lines] == [0] * 6


def test_a_ledger_of_one_file_is_read(root: Path) -> None:
    ledger = Ledger.read(root / "tests" / "fixtures" / "ledger-format-1.parquet")
    assert [(event.position, event.attempt, event.key, event.outcome.word) for event in ledger.events()] == [
        (5, 0, "cats/12", "truncated"),
        (5, 1, "cats/02", "read_error"),
    ]
    assert ledger.quarantined == 1
    assert ledger.bad()[0].thumbnail is not None
