"""The report of an index, and the choice of members and shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swav_platform.cli.main import run
from swav_platform.config import Data, Source
from swav_platform.data.datasets import labelled, open_or_build
from swav_platform.data.index.build import IndexReport, build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import find_shards
from swav_platform.data.index.verify import verify
from swav_platform.errors import UsageError, UserError
from tests.makers import smooth


def index_of(*patterns: str, out: Path, **options: Any) -> IndexReport:
    found = find_shards(list(patterns), missing=options.get("missing", "stop"))
    return build_index(found.shards, out, left_out=found.left_out, **options)


def keys(folder: Path) -> list[str]:
    index = Index.open(folder)
    return [line.key for line in index.lines(range(index.samples))]


def masks(count: int) -> list[tuple[str, bytes]]:
    return [(f"{n}.{end}", b"%d %s" % (n, end.encode())) for n in range(count) for end in ("jpg", "seg.png", "json")]


def test_a_plain_index_has_nothing_to_report(make_tar: Any, tmp_path: Path) -> None:
    assert index_of(make_tar("x.tar", [("a.jpg", b"x"), ("a.json", b"{}")]), out=tmp_path / "index").report == {}


def test_keys_with_several_images(make_tar: Any, tmp_path: Path) -> None:
    tar = make_tar("x.tar", [*masks(10), ("z.jpg", b"z")])
    report = index_of(tar, out=tmp_path / "index")
    assert report.report == {"several_images": {"count": 10, "names": ["10 with jpg, seg.png"]}}
    assert report.samples == 21
    assert index_of(tar, out=tmp_path / "index").report == report.report  # also of an index that is not read again


@pytest.mark.parametrize(
    ("members", "count", "first"),
    [
        (["jpg"], 10, "0"),
        (["seg.png"], 10, "0"),
        (["JPG", "*.png"], 20, "0"),
        (["*"], 20, "0"),
        (["*.JPG"], 10, "0"),
        (["png"], 0, ""),
    ],
)
def test_members_chooses_by_extension(make_tar: Any, tmp_path: Path, members: list[str], count: int, first: str) -> None:
    tar = make_tar("x.tar", masks(10))
    if not count:
        with pytest.raises(UserError, match="--members"):
            index_of(tar, out=tmp_path / "index", members=members)
        return
    report = index_of(tar, out=tmp_path / "index", members=members)
    assert (report.samples, report.report.get("not_chosen", {"count": 0})["count"]) == (count, 20 - count)
    assert keys(tmp_path / "index")[0] == first
    assert verify(Index.open(tmp_path / "index")).ok
    assert labelled(Index.open(tmp_path / "index"), tmp_path / "labelled", "folder").samples == count


def test_members_of_an_index_stay(make_tar: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = make_tar("x.tar", masks(3))
    for arguments in (["index", tar, "--members", "jpg", "--label", "folder"], ["index"]):
        assert run([*arguments, "--out", str(tmp_path / "index"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["samples"] == 3
    assert Index.open(tmp_path / "index").label == "folder"
    assert open_or_build(Data(index=str(tmp_path / "index")), tmp_path).samples == 3
    with pytest.raises(UsageError, match="--members"):
        open_or_build(Data(index=str(tmp_path / "index"), members=("seg.png",)), tmp_path)
    assert open_or_build(Data(sources=(tar,), members=("jpg",)), tmp_path / "run").samples == 3
    assert index_of(tar, out=tmp_path / "index").samples == 6


def test_missing_shards_are_left_out_and_named(make_tar: Any, tmp_path: Path) -> None:
    for n in (0, 1, 3):
        make_tar(f"{n}.tar", [(f"{n}.jpg", b"x")])
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.tar").symlink_to(tmp_path / "0.tar")
    (tmp_path / "links/b.tar").symlink_to(tmp_path / "gone.tar")
    for pattern, samples in ((f"{tmp_path}/{{0..3}}.tar", 3), (f"{tmp_path}/links", 1), (f"{tmp_path}/links/*.tar", 1)):
        with pytest.raises(UserError, match="missing"):
            index_of(pattern, out=tmp_path / "index")
        report = index_of(pattern, out=tmp_path / "index", missing="skip")
        assert (report.samples, report.report["shard_missing"]["count"]) == (samples, 1)
    with pytest.raises(UserError):
        index_of(f"{tmp_path}/links/b.tar", out=tmp_path / "index", missing="skip")


def test_missing_shards_on_a_web_server(web: Any, make_tar: Any, tmp_path: Path) -> None:
    for n in (0, 2):
        web.files[f"{n}.tar"] = Path(make_tar("x.tar", [(f"{n}.jpg", b"x")])).read_bytes()
    with pytest.raises(UserError, match="1 of 3 shards do not exist"):
        index_of(f"{web.url}/{{0..2}}.tar", out=tmp_path / "index")
    report = index_of(f"{web.url}/{{0..2}}.tar", out=tmp_path / "index", missing="skip")
    assert report.report["shard_missing"] == {"count": 1, "names": [f"{web.url}/1.tar"]}
    web.status["1.tar"] = 403
    with pytest.raises(UserError, match="denied"):
        index_of(f"{web.url}/{{0..2}}.tar", out=tmp_path / "index", missing="skip")


def test_missing_shards_keep_the_shares_of_sources(make_tar: Any, tmp_path: Path) -> None:
    for n in (0, 2, 3):
        make_tar(f"{n}.tar", [(f"{n}.jpg", b"x")])
    (tmp_path / "1.tar").symlink_to(tmp_path / "gone")
    patterns = [Source(pattern=f"{tmp_path}/{{0..1}}.tar", weight=2), Source(pattern=f"{tmp_path}/{{2..3}}.tar")]
    index = open_or_build(Data(sources=tuple(patterns), missing="skip"), tmp_path / "index")
    assert [(s["weight"], s["shards"], s["samples"]) for s in index.manifest["sources"]] == [(2.0, 1, 1), (1.0, 2, 2)]


def test_a_shard_that_is_listed_three_times_counts_three_times(make_tar: Any, tmp_path: Path) -> None:
    make_tar("base.tar", [(f"b{n}.jpg", b"%d" % n) for n in range(4)])
    rare = make_tar("rare.tar", [("r.jpg", b"r")])
    os.link(rare, tmp_path / "same.tar")
    (tmp_path / "list.txt").write_text("rare.tar\nbase.tar\nrare.tar\nsame.tar\nrare.tar\n")
    report = index_of(f"{tmp_path}/list.txt", out=tmp_path / "index")
    assert (report.samples, report.shards) == (8, 5)
    assert report.report["shard_twice"] == {"count": 1, "names": ["rare.tar (3 times)"]}
    assert report.report["shard_two_names"] == {"count": 1, "names": ["rare.tar = same.tar"]}
    lines = Index.open(tmp_path / "index").lines(range(8))
    assert [line.number for line in lines if line.name == "rare.tar"] == [4, 5, 6]
    assert verify(Index.open(tmp_path / "index")).ok
    assert labelled(Index.open(tmp_path / "index"), tmp_path / "labelled", "folder").samples == 6


def test_a_shard_under_two_names_is_reported(make_tar: Any, tmp_path: Path) -> None:
    tar = make_tar("real/x.tar", [("a.jpg", b"x")])
    (tmp_path / "link").symlink_to(Path(tar).parent)
    report = index_of(tar, str(tmp_path / "link"), out=tmp_path / "index")
    assert (report.samples, report.report["shard_two_names"]) == (2, {"count": 1, "names": ["link/x.tar = real/x.tar"]})


def test_names_do_not_control_the_terminal(make_tar: Any, tmp_path: Path) -> None:
    tar = make_tar("x.tar", [("a\x1b[2J\n.jpg", b"x"), ("a\x1b[2J\n.seg.png", b"y"), ("z.tar", b"tar")])
    (line, *_) = [line for line in index_of(tar, out=tmp_path / "index", members=["jpg"]).lines() if "does not choose" in line]
    assert r"a\x1b[2J\n.seg.png" in line


def test_damaged_shards_and_nested_tars_are_named(make_tar: Any, tmp_path: Path) -> None:
    inner = Path(make_tar("inner.tar", [("i.jpg", b"i")])).read_bytes()
    good = make_tar("d/good.tar", [("a.jpg", b"a"), ("inside.tar", inner), ("b.tar.gz", b"x")])
    cut = Path(make_tar("d/cut.tar", [("c.jpg", b"c"), ("d.jpg", bytes(3000))]))
    cut.write_bytes(cut.read_bytes()[:2500])
    (tmp_path / "d/page.tar").write_bytes(b"<html>" + b"x" * 2000)
    report = index_of(str(Path(good).parent), out=tmp_path / "index")
    assert report.report["nested_tar"] == {"count": 2, "names": ["inside.tar", "b.tar.gz"]}
    assert report.report["shard_damaged"] == {"count": 2, "names": ["cut.tar truncated (1)", "page.tar is not a tar"]}


def test_labels_are_counted(make_tar: Any, tmp_path: Path) -> None:
    files = [("a.jpg", b"a"), ("a.json", b'{"meta": {"class": 7}, "x.y": "z"}'), ("b.jpg", b"b"), ("b.json", b'{"meta": 3}')]
    tar = make_tar("x.tar", files)
    found = {
        label: index_of(tar, out=tmp_path / "index", label=label) for label in ("json:meta.class", "json:x.y", "json:no", "cls")
    }
    assert {label: report.labels for label, report in found.items()} == {
        "json:meta.class": 1,
        "json:x.y": 1,
        "json:no": 0,
        "cls": 0,
    }
    assert found["json:meta.class"].report["without_label"] == {"count": 1, "names": ["b"]}
    assert found["json:no"].report["without_label"]["count"] == 2


def test_equal_samples(make_tar: Any, tmp_path: Path) -> None:
    files = [(f"{n}.jpg", b"the same picture") for n in range(40)] + [
        (f"o{n}.jpg", b"another picture%d" % (n % 10)) for n in range(2)
    ]
    report = index_of(make_tar("x.tar", files), make_tar("y.tar", [("z.jpg", b"1" * 100)]), out=tmp_path / "index")
    assert report.report["equal_samples"] == {"count": 40, "names": ["x.tar/0 = x.tar/1"]}


def test_an_index_from_before_the_report_is_read(make_tar: Any, tmp_path: Path) -> None:
    report = index_of(make_tar("x.tar", [*masks(2), ("note.txt", b"")]), out=tmp_path / "index")
    path = Index.open(tmp_path / "index").path / "_shards.parquet"
    table = pq.read_table(path)
    old = [json.dumps(json.loads(text)[:2]) for text in table["skipped"].to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("skipped"), "skipped", pa.array(old)), path)
    again = index_of(f"{tmp_path}/x.tar", out=tmp_path / "index")
    assert (again.digest, again.shards_read, again.skipped) == (report.digest, 0, {"no_image": 1})


def test_the_page_has_example_images(make_tar: Any, tmp_path: Path) -> None:
    tar = make_tar("x.tar", [("a<b.jpg", smooth(1)), ("a<b.seg.png", smooth(2, kind="PNG")), ("c.jpg", b"broken")])
    page = tmp_path / "report.html"
    assert run(["index", tar, "--out", str(tmp_path / "index"), "--report", str(page)]) == 0
    text = page.read_text()
    assert text.count("data:image/jpeg;base64") == 2
    assert "a&lt;b" in text
    assert "several images" in text
    assert run(["index", tar, "--out", str(tmp_path / "index"), "--report", "x.tar"]) == 2
