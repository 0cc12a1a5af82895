"""The ledger in parts: appended, cut back to a checkpoint, and read like the single file of older runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.data.ledger.parts import LedgerWriter, forget_thumbnails, parts_in, read_events, worst
from swav_platform.errors import UserError


def event(position: int, attempt: int = 0, thumbnail: bytes | None = b"jpg", outcome: Outcome = Outcome.CORRUPT) -> Event:
    return Event(position, attempt, position % 7, f"k{position % 7}", f"{position % 2}.tar", outcome, "why", thumbnail)


def written(run: Path, steps: int, every: int = 2) -> LedgerWriter:
    """Two bad positions per step of ten."""
    writer = LedgerWriter(run)
    writer.open(0)
    for end in range(every, steps + 1, every):
        writer.append([event(10 * step + n) for step in range(end - every, end) for n in (1, 4)], end)
    return writer


def test_parts_are_read_as_one_ledger(tmp_path: Path) -> None:
    written(tmp_path, 8)
    found = list(read_events(tmp_path / "ledger"))
    assert [e.position for e in found] == [10 * step + n for step in range(8) for n in (1, 4)]
    assert len(parts_in(tmp_path / "ledger")) == 4
    pictured = [(e.shard, e.key) for e in found if e.thumbnail is not None]
    assert len(pictured) == len(set(pictured)) == 14, "one thumbnail for each sample, over all parts"
    assert Ledger.read(tmp_path / "ledger").events() == Ledger(found).events()


def test_what_came_after_the_checkpoint_did_not_happen(tmp_path: Path) -> None:
    written(tmp_path, 8)
    writer = LedgerWriter(tmp_path)
    writer.open(4)
    assert [end for _, end, _ in parts_in(tmp_path / "ledger")] == [2, 4]
    writer.append([event(43, thumbnail=None)], 6)
    assert [e.position for e in read_events(tmp_path / "ledger")] == [1, 4, 11, 14, 21, 24, 31, 34, 43]


def test_thumbnails_are_bounded_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swav_platform.data.ledger.parts.THUMBNAILS", 3)
    written(tmp_path, 2)
    writer = LedgerWriter(tmp_path)
    writer.open(2)
    writer.append([event(position) for position in range(20, 60)], 6)
    assert sum(e.thumbnail is not None for e in read_events(tmp_path / "ledger")) == 3


def test_the_ledger_of_an_older_run_is_taken_over(tmp_path: Path) -> None:
    old = Ledger([event(3), event(5)])
    old.write(tmp_path / "ledger.parquet")
    assert Ledger.read(tmp_path / "ledger").events() == old.events()
    writer = LedgerWriter(tmp_path)
    writer.open(6, old.to_bytes())
    writer.append([event(61)], 8)
    assert [e.position for e in read_events(tmp_path / "ledger")] == [3, 5, 61]


def test_a_run_without_bad_images_has_an_empty_ledger(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no ledger"):
        list(read_events(tmp_path / "ledger"))
    with pytest.raises(UserError, match="There is no ledger"):
        forget_thumbnails(tmp_path / "ledger", Exclusions([("1.tar", "k")]))
    LedgerWriter(tmp_path).open(0)
    assert list(read_events(tmp_path / "ledger")) == []
    assert worst(tmp_path / "ledger") == ("", "")


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    written(tmp_path, 4)
    (tmp_path / "ledger" / "part-000000002-000000004.parquet").write_bytes(b"x" * 50)
    with pytest.raises(UserError, match=r"part-000000002-000000004\.parquet can't be read"):
        list(read_events(tmp_path / "ledger"))


def test_the_worst_shard_and_the_most_frequent_reason(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path)
    writer.open(0)
    writer.append([event(1), event(3), event(4, outcome=Outcome.TRUNCATED), event(5)], 1)
    assert worst(tmp_path / "ledger") == ("corrupt", "1.tar")
