"""Tars that break other readers: a table of small tars and of the expected samples."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.data.samples import read_samples
from swav_platform.errors import UserError
from tests.makers import Files
from tests.makers import tar_bytes as tar

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def special(*members: tuple[bytes, str]) -> bytes:
    """A tar with special members and one image."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for kind, name in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            out.addfile(info)
    return buffer.getvalue()[: 512 * len(members)] + tar([("a.jpg", b"A")])


def sparse(format: int) -> bytes:
    if format == tarfile.PAX_FORMAT:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=format) as out:
            info = tarfile.TarInfo("GNUSparseFile.1/s.jpg")
            info.size = 512
            info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.jpg"}
            out.addfile(info, io.BytesIO(bytes(512)))
        return buffer.getvalue() + tar([("a.jpg", b"A")])
    header = bytearray(tar([("s.jpg", b"")])[:512])
    header[156:157] = b"S"
    return bytes(sealed(header)) + tar([("a.jpg", b"A")])


def sealed(header: bytearray) -> bytearray:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return header


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def v7() -> bytes:
    header = bytearray(tar([("a.jpg", b"A")], tarfile.USTAR_FORMAT))
    header[156:157], header[257:265] = b"\0", bytes(8)
    return bytes(sealed(header))


ABC = [("a.jpg", b"A"), ("b.jpg", b"B"), ("c.jpg", b"C")]  # each a block of header and a block of content
LONG = "folder/" * 30 + "x" * 120
MIB = bytes(2**20)

TRAPS: dict[str, tuple[bytes, dict[str, bytes], dict[str, int]]] = {
    # trap: (tar, samples by key, skipped by reason)
    "img2dataset's companions": (tar([("000.jpg", b"A"), ("000.txt", b"t"), ("000.json", b"{}")]), {"000": b"A"}, {}),
    "img2dataset's failed download": (tar([("0.jpg", b"A"), ("1.json", b"{}"), ("1.txt", b"")]), {"0": b"A"}, {"no_image": 1}),
    "dots in the key": (
        tar([("img.v1.2.jpg", b"A"), ("img.v1.3.jpg", b"B")]),
        {"img.v1.2": b"A", "img.v1.3": b"B"},
        {},
    ),
    "upper-case extensions": (tar([("a.JPG", b"A"), ("b.JPEG", b"B"), ("c.WebP", b"C")]), {"a": b"A", "b": b"B", "c": b"C"}, {}),
    "one base name in two folders": (tar([("x/0.jpg", b"A"), ("y/0.jpg", b"B")]), {"x/0": b"A", "y/0": b"B"}, {}),
    "dots in folders": (tar([("v1.0/1.jpg", b"A"), ("a.b/c.jpg", b"B")]), {"v1.0/1": b"A", "a.b/c": b"B"}, {}),
    "leading ./": (tar([("./z/0.jpg", b"A")]), {"./z/0": b"A"}, {}),
    "GNU long names": (tar([(f"{LONG}.jpg", b"A")]), {LONG: b"A"}, {}),
    "PAX long names": (tar([(f"{LONG}.jpg", b"A")], tarfile.PAX_FORMAT), {LONG: b"A"}, {}),
    "long extension": (tar([("a." + "e" * 200, PNG), ("b.jpg", b"B")]), {"a": PNG, "b": b"B"}, {}),
    "old GNU sparse": (sparse(tarfile.GNU_FORMAT), {"a": b"A"}, {"sparse": 1}),
    "PAX sparse, marked as a regular file": (sparse(tarfile.PAX_FORMAT), {"a": b"A"}, {"sparse": 1}),
    "hard and symbolic links": (special((tarfile.LNKTYPE, "h.jpg"), (tarfile.SYMTYPE, "s.jpg")), {"a": b"A"}, {"link": 2}),
    "devices and pipes": (special((tarfile.FIFOTYPE, "f.jpg"), (tarfile.CHRTYPE, "c.jpg")), {"a": b"A"}, {"special_file": 2}),
    "folders, also repeated": (special((tarfile.DIRTYPE, "d"), (tarfile.DIRTYPE, "d")), {"a": b"A"}, {}),
    "duplicate, adjacent": (tar([("a.jpg", b"A"), ("a.jpg", b"B")]), {"a": b"A"}, {"duplicate": 1}),
    "duplicate, far apart": (tar([*ABC, ("a.jpg", b"D")]), {"a": b"A", "b": b"B", "c": b"C"}, {"duplicate": 1}),
    "members of a sample apart": (
        tar([("a.jpg", b"A"), ("b.jpg", b"B"), ("a.json", b"{}"), ("b.json", b"{}")]),
        {"a": b"A", "b": b"B"},
        {},
    ),
    "no extension": (tar([("README", b"text"), ("000", PNG), ("LICENSE", b"")]), {"000": PNG}, {"no_image": 2}),
    "hidden files of desktops": (
        tar([("._000.jpg", b"x"), (".DS_Store", b""), ("d/.DS_Store", b""), ("__MACOSX/._0.jpg", b"x"), ("0.jpg", b"A")]),
        {"0": b"A"},
        {"hidden": 4},
    ),
    "name that is not UTF-8": (tar([("caf\udce9.jpg", b"A")]), {"caf%E9": b"A"}, {}),
    "empty image": (tar([("a.jpg", b""), ("b.jpg", b"B")]), {"a": b"", "b": b"B"}, {}),
    "damaged header in the middle": (flipped(tar(ABC), 1029), {"a": b"A", "c": b"C"}, {"damaged": 1}),
    "block of zeros in the middle": (
        tar(ABC[:1], end=False) + bytes(512) + tar(ABC[1:]),
        {"a": b"A", "b": b"B", "c": b"C"},
        {},
    ),
    "two tars in one file": (tar(ABC[:1]) + tar(ABC[1:]), {"a": b"A", "b": b"B", "c": b"C"}, {}),
    "cut inside content": (tar([*ABC[:2], ("big.jpg", MIB)])[: 2048 + 5000], {"a": b"A", "b": b"B"}, {"truncated": 1}),
    "cut inside a header": (tar(ABC)[: 2048 + 100], {"a": b"A", "b": b"B"}, {"truncated": 1}),
    "cut between two members": (tar(ABC)[:2048], {"a": b"A", "b": b"B"}, {"no_end": 1}),
    "no blocks of zeros at the end": (tar(ABC, end=False), {"a": b"A", "b": b"B", "c": b"C"}, {"no_end": 1}),
    "gzip under a plain name": (gzip.compress(tar(ABC)), {"a": b"A", "b": b"B", "c": b"C"}, {}),
    "v7": (v7(), {"a": b"A"}, {}),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_trap(tmp_path: Path, trap: str) -> None:
    data, samples, skipped = TRAPS[trap]
    (tmp_path / "x.tar").write_bytes(data)
    report = build_index([str(tmp_path / "x.tar")], tmp_path / "index")
    lines = Index.open(tmp_path / "index").lines(range(report.samples))
    contents = read_samples(lines)
    assert {line.key: contents[line.number] for line in lines} == samples
    assert report.skipped == skipped


BROKEN: dict[str, tuple[bytes, dict[str, int]]] = {
    "shard without images": (tar([("a.txt", b"x")]), {"no_image": 1}),
    "empty tar": (tar([]), {}),
    "file of no bytes": (b"", {"shard_empty_file": 1}),
    "error page saved as a tar": (b"<!DOCTYPE html><html>" + b"404 " * 300, {"shard_not_a_tar": 1}),
    "something else": (b"hello" * 500, {"shard_not_a_tar": 1}),
    "gzip of something else": (gzip.compress(b"x" * 3000), {"shard_compressed": 1}),
}


@pytest.mark.parametrize("trap", BROKEN)
def test_a_broken_shard_affects_no_other_shard(tmp_path: Path, trap: str) -> None:
    data, skipped = BROKEN[trap]
    (tmp_path / "bad.tar").write_bytes(data)
    (tmp_path / "good.tar").write_bytes(tar(ABC))
    report = build_index([str(tmp_path / "bad.tar"), str(tmp_path / "good.tar")], tmp_path / "index")
    assert (report.samples, report.skipped) == (3, skipped)


def test_truncated_gzip_keeps_the_samples_before_the_cut(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(100_000)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar([*ABC, ("r.jpg", noise)]))[:50_000])
    report = build_index([str(tmp_path / "x.tar.gz")], tmp_path / "index")
    assert (report.samples, report.skipped) == (3, {"truncated": 1})


def test_zstd(tmp_path: Path) -> None:
    import pyarrow as pa

    data = tar(ABC)
    with pa.CompressedOutputStream(str(tmp_path / "x.tar.zst"), "zstd") as out:
        out.write(data)
    assert build_index([str(tmp_path / "x.tar.zst")], tmp_path / "index").samples == 3


def test_a_nested_tar_is_not_indexed(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar([("inner.tar", tar([("in.jpg", b"I")])), ("a.jpg", b"A")]))
    build_index([str(tmp_path / "x.tar")], tmp_path / "index")
    assert [line.key for line in Index.open(tmp_path / "index").lines([0])] == ["a"]


@pytest.mark.parametrize(
    ("pattern", "count"), [("{000..010}", 11), ("{8..11}", 4), ("{000..004..2}", 3), ("{a,b}", 2), ("[0-1]", 2), ("00[0-1]", 2)]
)
def test_patterns_of_shards(tmp_path: Path, pattern: str, count: int) -> None:
    for name in [*(f"{n:03d}" for n in range(12)), "8", "9", "10", "11", "a", "b", "0", "1"]:
        (tmp_path / f"{name}.tar").write_bytes(b"x")
    assert len(expand([f"{tmp_path}/{pattern}.tar"])) == count


@pytest.mark.parametrize(("pattern", "says"), [("a.tar::b.tar", "`::` lists"), ("pipe:cat a.tar", "shell command")])
def test_rejected_patterns(pattern: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        expand([pattern])


def test_a_missing_shard_is_an_error(tmp_path: Path, make_tar: Callable[[str, Files], str]) -> None:
    with pytest.raises(UserError, match=r"gone\.tar can't be read"):
        build_index([make_tar("a.tar", ABC), str(tmp_path / "gone.tar")], tmp_path / "index")
