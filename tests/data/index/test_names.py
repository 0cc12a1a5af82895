"""Shards of one base name in several folders: names, exclusions, weights, ledgers."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swav_platform.data.index.balance import Weights
from swav_platform.data.index.build import build_index
from swav_platform.data.index.exclusions import FILE, Exclusions
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.names import short_names
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.data.ledger.parts import forget_thumbnails


@pytest.fixture
def parts(make_tar: Any) -> list[str]:
    return [make_tar(f"part-{p}/shard-0.tar", [(f"{i}.jpg", b"%d" % i) for i in range(3)]) for p in "abc"]


def left(index: Path) -> Counter[str]:
    opened = Index.open(index)
    return Counter(line.name for line in opened.lines(range(opened.samples)))


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (["/d/a.tar", "/d/b.tar"], ["a.tar", "b.tar"]),
        (["/d/a/x.tar", "/d/b/x.tar", "/d/b/y.tar"], ["a/x.tar", "b/x.tar", "y.tar"]),
        (["/d/a/1/x.tar", "/d/b/1/x.tar", "/d/b/2/x.tar"], ["a/1/x.tar", "b/1/x.tar", "2/x.tar"]),
        (["/x.tar", "/a/x.tar"], ["/x.tar", "a/x.tar"]),
        (["s3://b/x.tar", "s3://c/x.tar", "gs://b/x.tar"], ["s3://b/x.tar", "c/x.tar", "gs://b/x.tar"]),
        (["https://h/x.tar?sig=a/b"], ["x.tar"]),
        (["https://h/get?id=1", "https://h/get?id=2"], ["https://h/get?id=1", "https://h/get?id=2"]),
        (["/d/x.tar", "/d/x.tar"], ["x.tar", "x.tar"]),
        (["pipe:cat /a/x.tar", "pipe:cat /b/x.tar"], ["a/x.tar", "b/x.tar"]),
    ],
)
def test_a_name_is_the_shortest_end_that_is_unique(urls: list[str], names: list[str]) -> None:
    assert short_names(urls) == names


@pytest.mark.parametrize("line", ["part-b/shard-0.tar", "{folder}/part-b/shard-0.tar", "file://{folder}/part-b/shard-0.tar"])
def test_a_line_takes_out_one_image(parts: list[str], tmp_path: Path, line: str) -> None:
    (tmp_path / "take.txt").write_text(f"{line.format(folder=tmp_path)}\t1\n")
    report = build_index(parts, tmp_path / "index", exclude=Exclusions.of_file(tmp_path / "take.txt"))
    assert (report.samples, report.unmatched, report.ambiguous) == (8, 0, 0)
    assert left(tmp_path / "index") == {"part-a/shard-0.tar": 3, "part-b/shard-0.tar": 2, "part-c/shard-0.tar": 3}


def test_an_ambiguous_line_is_reported_and_not_applied(
    parts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "swav"):
        report = build_index(parts, tmp_path / "index", exclude=Exclusions([("shard-0.tar", "1"), ("gone.tar", "1")]))
    assert (report.samples, report.unmatched, report.ambiguous) == (9, 1, 1)
    assert "shard-0.tar<tab>1 may mean" in caplog.text
    assert build_index(parts, tmp_path / "index", exclude=Exclusions([("*/shard-0.tar", "1")])).samples == 6


def test_a_line_stays_clear_when_a_shard_of_the_same_name_is_added(parts: list[str], tmp_path: Path) -> None:
    assert build_index(parts[:1], tmp_path / "index", exclude=Exclusions([("shard-0.tar", "1")])).samples == 2
    report = build_index(parts, tmp_path / "index")
    assert (report.samples, report.ambiguous) == (8, 0)
    assert left(tmp_path / "index")["part-a/shard-0.tar"] == 2


def test_a_list_of_base_names_in_an_old_index_keeps_its_meaning(parts: list[str], tmp_path: Path) -> None:
    build_index(parts, tmp_path / "index")
    old = pa.table({"shard": ["shard-0.tar", None], "key": ["1", "2"], "found": [True, True]})
    pq.write_table(old, tmp_path / "index" / FILE)
    assert sum(line.excluded for line in Index.open(tmp_path / "index").lines(range(9))) == 6
    assert build_index(parts, tmp_path / "index", exclude=Exclusions([("part-a/shard-0.tar", "0")])).samples == 2
    assert build_index(parts, tmp_path / "index").samples == 2


def test_weights_are_for_one_shard(parts: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "w.csv").write_text(f"shard,key,weight\npart-b/shard-0.tar,1,3\n{parts[2]},1,2\nshard-0.tar,0,5\n,2,1\n")
    with caplog.at_level(logging.WARNING, "swav"):
        build_index(parts, tmp_path / "index", weights=Weights.of_file(tmp_path / "w.csv"))
    assert left(tmp_path / "index") == {"part-a/shard-0.tar": 3, "part-b/shard-0.tar": 5, "part-c/shard-0.tar": 4}
    assert "1 lines of the weights" in caplog.text


def test_weights_of_three_shards_of_one_name(parts: list[str], tmp_path: Path) -> None:
    lines = "part-a/shard-0.tar,0,4\npart-a/shard-0.tar,1,1\npart-b/shard-0.tar,1,3\npart-c/shard-0.tar,2,0\n"
    (tmp_path / "w.csv").write_text(f"shard,key,weight\n{lines}")
    build_index(parts, tmp_path / "index", weights=Weights.of_file(tmp_path / "w.csv"))
    index = Index.open(tmp_path / "index")
    found = Counter((line.name[5], line.key) for line in index.lines(range(index.samples)))
    ones = {(part, key): 1 for part in "abc" for key in "012"}
    assert found == {key: n for key, n in (ones | {("a", "0"): 4, ("b", "1"): 3, ("c", "2"): 0}).items() if n}


def test_a_line_takes_out_the_image_of_its_key_whatever_the_key_holds(make_tar: Any, tmp_path: Path) -> None:
    odd = ["a\u2028b", "c\x85d", "e\tf"]
    tar = make_tar("x.tar", [(f"{key}.jpg", b"x") for key in (*odd, "a", "b", "c", "d", "e", "f")])
    (tmp_path / "list").write_text(f"{odd[0]}\n{odd[1]}\r\nx.tar\t{odd[2]}\n")
    report = build_index([tar], tmp_path / "index", exclude=Exclusions.of_file(tmp_path / "list"))
    index = Index.open(tmp_path / "index")
    assert [line.key for line in index.lines(range(index.samples))] == ["a", "b", "c", "d", "e", "f"]
    assert report.unmatched == 0


def test_a_ledger_forgets_thumbnails_by_any_end_of_a_path(tmp_path: Path) -> None:
    events = [Event(n, 0, n, "k", f"{part}/x.tar", Outcome.CORRUPT, "", b"jpeg") for n, part in enumerate("ab")]
    for line, kept in (("/d/b/x.tar", 1), ("b/x.tar", 1), ("x.tar", 0), ("*/x.tar", 0), ("y.tar", 2), (None, 0)):
        Ledger(events).write(tmp_path / "ledger.parquet")
        forget_thumbnails(tmp_path / "ledger.parquet", Exclusions([(line, "k")]))
        ledger = Ledger.read(tmp_path / "ledger.parquet")
        assert sum(event.thumbnail is not None for event in ledger.events()) == kept
