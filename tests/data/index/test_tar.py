"""Scans of small tars, compared with tarfile where the tar is intact."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_platform.data.index.tar import NotATar, TarScan, scan
from tests.makers import tar_bytes


def scanned(tmp_path: Path, data: bytes) -> TarScan:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    return scan(path)


def contents(found: TarScan, data: bytes) -> list[tuple[bytes, bytes]]:
    return [(m.name, data[m.offset : m.offset + m.size]) for m in found.members]


def expected(files: list[tuple[str, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("utf-8", "surrogateescape"), content) for name, content in files]


THREE = [("a.jpg", b"A" * 700), ("d/b.JPG", b"B" * 1024), ("c.png", b"C")]


@settings(max_examples=40, deadline=None)
@given(
    files=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300), st.binary(max_size=1500)
        ),
        max_size=6,
    ),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_names_in_gnu_and_pax(tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]], format: int) -> None:
    files = [(name.replace("/", "-"), content) for name, content in files]
    data = tar_bytes(files, format)
    found = scanned(tmp_path_factory.mktemp("tar"), data)
    assert contents(found, data) == expected(files)
    assert not found.problems


def test_ustar_with_prefix(tmp_path: Path) -> None:
    files = [("folder" * 20 + "/" + "x" * 90 + ".jpg", b"1234")]
    data = tar_bytes(files, tarfile.USTAR_FORMAT)
    assert contents(scanned(tmp_path, data), data) == expected(files)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    data = tar_bytes([("caf\udce9.jpg", b"1")], tarfile.USTAR_FORMAT)
    assert scanned(tmp_path, data).members[0].name == b"caf\xe9.jpg"


def test_only_headers_are_read(tmp_path: Path) -> None:
    found = scanned(tmp_path, tar_bytes([("big.jpg", bytes(5_000_000))]))
    assert found.bytes_read < 500_000


def test_v7(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(THREE[:1]))
    data[156:157], data[257:265] = b"\0", bytes(8)
    seal(data, 0)
    assert [m.name for m in scanned(tmp_path, bytes(data)).members] == [b"a.jpg"]


def test_links_folders_and_devices_are_not_members(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind, name in (
            (tarfile.SYMTYPE, "s.jpg"),
            (tarfile.LNKTYPE, "h.jpg"),
            (tarfile.FIFOTYPE, "f"),
            (tarfile.DIRTYPE, "d"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    found = scanned(tmp_path, buffer.getvalue())
    assert [m.name for m in found.members] == [b"a.jpg"]
    assert found.problems == {"link": 2, "special_file": 1}


def test_links_have_no_content(tmp_path: Path) -> None:
    """Old cpio and pax write the target's size into a hard link, but no content follows."""
    link = bytearray(tar_bytes([("h.jpg", b"")]))[:512]
    link[124:136], link[156:157] = b"00000002000\0", b"1"
    seal(link, 0)
    assert [m.name for m in scanned(tmp_path, bytes(link) + tar_bytes(THREE)).members] == [b"a.jpg", b"d/b.JPG", b"c.png"]


def test_sparse_members_are_skipped(tmp_path: Path) -> None:
    """The stored bytes are not the content. PAX sparse members look like regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.1/s.jpg")
        info.size = 512
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "s.jpg",
            "GNU.sparse.realsize": "1048576",
        }
        tar.addfile(info, io.BytesIO(bytes(512)))
    old = bytearray(tar_bytes([("old.jpg", b"")]))[:512]
    old[156:157], old[482] = b"S", 1
    seal(old, 0)
    extension = b"7" * 504 + bytes(8)
    data = bytes(old) + extension + buffer.getvalue() + tar_bytes([("z.jpg", b"z")])
    found = scanned(tmp_path, data)
    assert [m.name for m in found.members] == [b"z.jpg"]
    assert found.problems == {"sparse": 2}


def test_a_damaged_header_costs_one_member(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(THREE))
    data[512 + 1024 + 5] ^= 0xFF  # in the name of the second member
    found = scanned(tmp_path, bytes(data))
    assert contents(found, bytes(data)) == [expected(THREE)[0], expected(THREE)[2]]
    assert found.problems == {"damaged": 1}


def test_a_long_name_is_dropped_with_its_damaged_member(tmp_path: Path) -> None:
    files = [("a.jpg", b"1"), ("long" * 40 + ".jpg", b"2"), ("c.jpg", b"3")]
    data = bytearray(tar_bytes(files, tarfile.GNU_FORMAT))
    at = data.index(b"longlong", data.index(b"longlong") + 200)  # the member's own header, after the record
    data[at] ^= 0xFF
    found = scanned(tmp_path, bytes(data))
    assert [m.name for m in found.members] == [b"a.jpg", b"c.jpg"]


def test_zeros_in_the_middle_and_concatenated_tars(tmp_path: Path) -> None:
    data = tar_bytes(THREE[:1]) + bytes(512 * 3) + tar_bytes(THREE[1:], tarfile.PAX_FORMAT)
    found = scanned(tmp_path, data)
    assert contents(found, data) == expected(THREE)
    assert not found.problems


def test_truncated_tars(tmp_path: Path) -> None:
    data = tar_bytes(THREE)
    inside_content = scanned(tmp_path, data[: 512 + 1024 + 512 + 100])
    assert [m.name for m in inside_content.members] == [b"a.jpg"]
    assert inside_content.problems == {"truncated": 1}
    inside_header = scanned(tmp_path, data[: 512 + 1024 + 200])
    assert [m.name for m in inside_header.members] == [b"a.jpg"]
    assert inside_header.problems == {"truncated": 1}
    at_boundary = scanned(tmp_path, data[: 512 + 1024])
    assert len(at_boundary.members) == 1
    assert at_boundary.problems == {"no_end": 1}


def test_a_nested_tar_is_not_scanned(tmp_path: Path) -> None:
    inner = tar_bytes([("inner.jpg", b"x")])
    data = tar_bytes([("outer.tar", inner), ("a.jpg", b"y")])
    assert [m.name for m in scanned(tmp_path, data).members] == [b"outer.tar", b"a.jpg"]


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (b"", "empty_file", "empty"),
        (gzip.compress(b"x" * 5000, mtime=0), "compressed", "unpack"),
        (b"<!DOCTYPE html><html>" + b"404 " * 300, "not_a_tar", "web page"),
        (b"<html>short", "not_a_tar", "web page"),
        (random.Random(1).randbytes(5000), "not_a_tar", "not a tar"),
        (b"abc", "not_a_tar", "3 bytes"),
    ],
)
def test_other_files_are_not_tars(tmp_path: Path, data: bytes, reason: str, says: str) -> None:
    with pytest.raises(NotATar, match=says) as raised:
        scanned(tmp_path, data)
    assert raised.value.reason == reason


def test_an_empty_tar_is_a_tar(tmp_path: Path) -> None:
    found = scanned(tmp_path, tar_bytes([]))
    assert not found.members
    assert not found.problems


@settings(max_examples=120, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=8), cut=st.integers(0, 7000))
def test_no_damage_breaks_the_scan(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(tar_bytes([*THREE, ("é" * 120 + ".jpg", b"9" * 600)], tarfile.PAX_FORMAT)[:7000])
    for at, value in flips:
        data[at] = value
    try:
        found = scanned(tmp_path_factory.mktemp("tar"), bytes(data[:cut]))
    except NotATar:
        return
    assert all(m.offset + m.size <= cut for m in found.members)


def test_hostile_sizes_end_the_scan(tmp_path: Path) -> None:
    for size in (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0"):
        data = bytearray(tar_bytes(THREE))
        data[512 + 1024 + 124 : 512 + 1024 + 136] = size
        seal(data, 512 + 1024)
        assert scanned(tmp_path, bytes(data)).members[0].name == b"a.jpg"


def seal(data: bytearray, at: int) -> None:
    """Updates the checksum of the header at `at`."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def test_real_shards_match_tarfile(shared: Path) -> None:
    for path in [*sorted((shared / "data").glob("*/*-000000.tar"))]:
        with tarfile.open(path) as tar:
            truth = [(m.name.encode(), m.offset_data, m.size) for m in tar if m.isreg()]
        found = scan(path)
        assert [tuple(m) for m in found.members] == truth
        assert not found.problems
