"""Shards on a web server: the same index and the same bytes as on a disk."""

from __future__ import annotations

import bz2
import gzip
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.data.index.tar import scan
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.outages import Outages
from swav_platform.data.samples import ReadCounts, ReadFailure, read_samples
from swav_platform.data.storage.objects import Traffic, read_range
from swav_platform.data.storage.ranges import RemoteFile
from swav_platform.errors import UsageError, UserError
from swav_platform.failures import MachineFault

SMALL = [(f"{n:03d}.jpg", random.Random(n).randbytes(900)) for n in range(300)]
LARGE = [(f"{n:03d}.jpg", random.Random(n).randbytes(300_000)) for n in range(8)]


def put(web: Any, make_tar: Any, **tars: Any) -> list[str]:
    for name, files in tars.items():
        web.files[f"data/{name}.tar"] = Path(make_tar(f"{name}.tar", files)).read_bytes()
    return [f"{web.url}/data/{name}.tar" for name in tars]


def contents(index: Index, outages: Outages | None = None) -> dict[str, Any]:
    lines = index.lines(range(index.samples))
    found = read_samples(lines, outages=outages)
    return {line.key: found[line.number] for line in lines}


def test_the_same_index_and_bytes_as_from_disk(web: Any, make_tar: Any, tmp_path: Path) -> None:
    urls = put(web, make_tar, small=SMALL, large=LARGE)
    here = build_index([str(tmp_path / "small.tar"), str(tmp_path / "large.tar")], tmp_path / "here")
    there = build_index(urls, tmp_path / "there")
    assert (there.digest, there.samples, there.whole) == (here.digest, 308, 0)
    assert contents(Index.open(tmp_path / "there")) == {name[:-4]: data for name, data in SMALL + LARGE}
    asked = len(web.requests)
    again = build_index(urls, tmp_path / "there")
    assert (again.shards_read, again.bytes_read) == (0, 0)
    assert [method for method, _, _ in web.requests[asked:]] == ["HEAD", "HEAD"]


def test_a_scan_skips_the_content_of_large_images(web: Any, make_tar: Any) -> None:
    (url,) = put(web, make_tar, large=LARGE)
    assert len(scan(url).members) == 8
    assert web.sent < 240_000  # of 2.4 MB
    assert all(asked for method, _, asked in web.requests if method == "GET")


def test_small_images_take_few_requests(web: Any, make_tar: Any) -> None:
    (url,) = put(web, make_tar, small=SMALL)
    assert len(scan(url).members) == 300
    assert len(web.requests) < 300 / 10
    assert web.sent < 1.5 * len(web.files["data/small.tar"])


def test_neighbours_share_a_request(web: Any, make_tar: Any, tmp_path: Path) -> None:
    build_index(put(web, make_tar, small=SMALL, large=LARGE), tmp_path / "index")
    index, counts = Index.open(tmp_path / "index"), ReadCounts()
    sent, asked = web.sent, len(web.requests)
    assert len(read_samples(index.lines([3, 4, 5, 200, 301, 302]), counts=counts)) == 6
    assert len(web.requests) - asked == counts.requests < 6
    assert web.sent - sent == counts.bytes
    assert counts.wanted == 4 * 900 + 2 * 300_000


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("fault", ["503", "reset", "cut", "slow"])
def test_a_broken_answer_is_continued(web: Any, fault: str, etags: bool) -> None:
    web.files["x"] = random.Random(0).randbytes(400_000)
    web.etags, web.faults = etags, lambda path, number: fault if number < 2 else None
    traffic = Traffic()
    data, info = read_range(f"{web.url}/x", 1000, 350_000, traffic=traffic)
    assert data == web.files["x"][1000:350_000]
    assert info.size == 400_000
    assert len(web.requests) == 3
    assert web.sent < 1.5 * 349_000  # three complete answers would be 3 times as much
    assert traffic.bytes == 349_000


def test_a_changed_object_is_not_read(web: Any, make_tar: Any, tmp_path: Path) -> None:
    urls = put(web, make_tar, a=LARGE[:2], b=LARGE[2:])
    build_index(urls, tmp_path / "index")
    put(web, make_tar, a=LARGE[1:3])
    with pytest.raises(MachineFault, match=r"a\.tar can't be used \(has changed since it was indexed"):
        contents(Index.open(tmp_path / "index"), Outages(patience=0))


def test_a_missing_object_is_no_bad_data(web: Any, make_tar: Any, tmp_path: Path) -> None:
    build_index(put(web, make_tar, a=LARGE[:1], b=LARGE[1:2]), tmp_path / "index")
    index = Index.open(tmp_path / "index")
    web.status["data/a.tar"] = 404
    with pytest.raises(MachineFault, match=r"a\.tar can't be used \(404"):
        contents(index, Outages(patience=0, index=index))
    found = contents(index, Outages(patience=0, missing="replace", index=index))
    assert isinstance(found["000"], ReadFailure)
    assert found["000"].outcome == Outcome.READ_ERROR
    assert "404" in found["000"].detail
    assert found["001"] == LARGE[1][1]


def test_truncated_and_empty_objects(web: Any, make_tar: Any, tmp_path: Path) -> None:
    urls = put(web, make_tar, cut=LARGE, empty=[], good=LARGE[:1])
    web.files["data/cut.tar"] = web.files["data/cut.tar"][:700_000]
    web.files["data/nothing.tar"] = b""
    report = build_index([*urls, f"{web.url}/data/nothing.tar"], tmp_path / "index")
    assert (report.samples, report.skipped) == (3, {"truncated": 1, "shard_empty_file": 1})


@pytest.mark.parametrize("packed", [False, True])
def test_shards_without_ranges_and_gzip_are_fetched_once(web: Any, make_tar: Any, tmp_path: Path, packed: bool) -> None:
    (url,) = put(web, make_tar, small=SMALL)
    if packed:
        web.files["data/small.tar"] = gzip.compress(web.files["data/small.tar"])
    web.ranges = packed
    report = build_index([url], tmp_path / "index")
    assert (report.samples, report.whole, report.skipped) == (300, 1, {})
    asked = len(web.requests)
    assert contents(Index.open(tmp_path / "index")) == {name[:-4]: data for name, data in SMALL}
    assert len(web.requests) == asked
    for path in (tmp_path / "_cache").glob("*.tar"):
        path.unlink()
    assert contents(Index.open(tmp_path / "index"))["007"] == SMALL[7][1]


def test_the_shard_cache_is_bounded(make_tar: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_CACHE_BYTES", str(1_500_000))
    paths = []
    for n in range(4):
        path = Path(make_tar(f"{n}.tar", LARGE[2 * n : 2 * n + 2]))
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        paths.append(f"{path}.gz")
    assert build_index(paths, tmp_path / "index").whole == 4
    assert contents(Index.open(tmp_path / "index")) == {name[:-4]: data for name, data in LARGE}
    assert sum(path.stat().st_size for path in (tmp_path / "_cache").glob("*.tar")) < 2_500_000


def test_pipes_need_permission(make_tar: Any, tmp_path: Path) -> None:
    pattern = f"pipe:cat {make_tar('x.tar', SMALL)}"
    with pytest.raises(UsageError, match=r"shell command.*--allow-pipe"):
        expand([pattern])
    listed = tmp_path / "list.txt"
    listed.write_text(pattern + "\n")
    with pytest.raises(UsageError, match=r"in .*list.txt is a shell command"):
        expand([f"@{listed}"])
    report = build_index(expand([str(listed)], allow_pipe=True), tmp_path / "index")
    assert (report.samples, report.whole) == (300, 1)
    assert contents(Index.open(tmp_path / "index"))["007"] == SMALL[7][1]


def test_a_command_that_fails_is_named(make_tar: Any, tmp_path: Path) -> None:
    broken = f"pipe:: exit 0; cat {make_tar('x.tar', SMALL)}; (exit 3)"
    with pytest.raises(UserError, match=r"the command failed with exit code 3\)"):
        build_index([broken], tmp_path / "index")
    report = build_index([broken, make_tar("y.tar", SMALL)], tmp_path / "index")
    assert (report.samples, report.skipped) == (300, {"shard_unreadable": 1})


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, partial(pa.compress, codec="zstd", asbytes=True)], ids=["gzip", "bzip2", "zstd"]
)
def test_a_damaged_compressed_tar_fails_only_itself(make_tar: Any, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = Path(make_tar("x.tar", LARGE))
    packed = pack(path.read_bytes())
    (tmp_path / "cut").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "head").write_bytes(packed[:10] + bytes(1000))
    report = build_index([str(tmp_path / "cut"), str(tmp_path / "head"), make_tar("y.tar", SMALL)], tmp_path / "index")
    assert 300 <= report.samples < 300 + len(LARGE)
    assert set(report.skipped) <= {"shard_unreadable", "shard_compressed", "truncated"}


def test_a_cache_folder_that_cannot_be_created(make_tar: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_CACHE", "/proc/nope")
    with pytest.raises(UserError, match=r"cache /proc/nope can't be used.*SWAV_CACHE"):
        build_index([f"pipe:cat {make_tar('x.tar', SMALL)}"], tmp_path / "index")


@pytest.mark.parametrize(
    ("status", "says"),
    [(404, "does not exist"), (403, "was denied.*signed URL may have expired"), (503, "could not be reached")],
)
def test_errors_of_a_server_are_one_paragraph(web: Any, tmp_path: Path, status: int, says: str) -> None:
    web.status["x.tar"] = status
    with pytest.raises(UserError, match=says) as raised:
        build_index([f"{web.url}/x.tar"], tmp_path / "index")
    assert "\n" not in str(raised.value)
    assert f"{web.url}/x.tar" in str(raised.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9/x.tar", "could not be reached.*connection refused"),
        ("http://no-such-host.invalid/x.tar", "could not be reached.*no such host"),
    ],
)
def test_unreachable_servers(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build_index([url], tmp_path / "index")


def test_signed_and_escaped_urls(web: Any, make_tar: Any, tmp_path: Path) -> None:
    put(web, make_tar, x=SMALL)
    web.files["data/a%20b.tar"] = web.files["data/x.tar"]
    for url in (f"{web.url}/data/x.tar?sig=a%2Fb", f"{web.url}/data/a%20b.tar"):
        with RemoteFile(url) as file:
            assert file.size == len(web.files["data/x.tar"])
        assert web.requests[-1][1] == url.removeprefix(web.url)
