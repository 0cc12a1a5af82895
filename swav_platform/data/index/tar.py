"""Locates the members of a tar by reading only its headers.

tarfile and webdataset stop silently at the first damaged header or block of zeros and lose the rest of the shard. This scan
continues to the end of the file and counts the problems.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from swav_platform.data.storage.ranges import Ranges, open_ranges

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_RECORD_LIMIT = 2**20  # maximum bytes of a PAX or GNU long-name record; a longer one counts as damaged
_SEARCH = 2**20  # bytes per read when searching for the next header
_FOREIGN = (
    (b"\x1f\x8b", "compressed"),
    (b"\x28\xb5\x2f\xfd", "compressed"),
    (b"BZh", "compressed"),
    (b"\xfd7zXZ", "compressed"),
    (b"PK\x03\x04", "compressed"),
)


class NotATar(Exception):
    """The file has no members that can be read by ranges. reason: one word for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Member(NamedTuple):
    """A regular file in a tar. offset: the first byte of its content."""

    name: bytes
    offset: int
    size: int


@dataclass
class TarScan:
    """The members of a tar. end: the end of the last member's content. problems: counts of skipped or unusual parts by kind.

    damaged: a stretch without a valid header. truncated: a member that exceeds the end of the file. no_end: no blocks of zeros
    at the end of the tar. Others: link, special_file, sparse.
    """

    members: list[Member] = field(default_factory=list)
    end: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    bytes_read: int = 0


HEADER = _BLOCK
"""Bytes of the header before a member's content."""


def content_size(header: bytes) -> int | None:
    """The size of a member's content by its header; None if these bytes are no header."""
    parsed = _parse(header)
    return None if parsed is None else parsed.size


def scan(path: str | Path) -> TarScan:
    """All regular members of a tar, in file order.

    Raises NotATar for empty, compressed or other files, and the errors of `open_ranges` for unreadable ones.
    """
    with open_ranges(str(path)) as file:
        return scan_file(file, str(path))


def scan_file(file: Ranges, name: str) -> TarScan:
    """Like `scan`, for an open shard. name: for messages."""
    _reject_other_formats(name, file.size, file.read(_BLOCK, 0))
    found = _walk(file)
    if not found.members and found.problems["damaged"]:
        raise NotATar("not_a_tar", f"{name} is not a tar: it has no valid header")
    return found


@dataclass
class _Header:
    name: bytes
    size: int
    type: bytes
    continued: bool  # old GNU sparse header with extension blocks


def _walk(file: Ranges) -> TarScan:
    found = TarScan()
    records: dict[bytes, bytes] = {}  # PAX and GNU records for the next member
    at, closed = 0, False
    while at + _BLOCK <= file.size:
        block = file.read(_BLOCK, at)
        header = _parse(block)
        if header is None:
            records, closed = {}, block == _ZEROS
            at, damaged = _next_header(file, at)
            found.problems["damaged"] += damaged
            continue
        closed = False
        content = at + _BLOCK
        if header.type in (b"L", b"K", b"x", b"g", b"X"):
            if content + header.size > file.size:
                found.problems["truncated"] += 1
                break
            if header.size > _RECORD_LIMIT:
                found.problems["damaged"] += 1
            elif header.type != b"g":  # global records have no name of a member
                records |= _record(header.type, file.read(header.size, content))
            at = content + _padded(header.size)
            continue
        size = _decimal(records.get(b"size"), header.size)
        if header.type in (b"1", b"2", b"3", b"4", b"5", b"6"):
            size = 0  # links, devices and folders have no content, whatever their header says
        while header.continued:
            header.continued = file.read(_BLOCK, content)[504:505] > b"\0"
            content += _BLOCK
        if content + size > file.size:
            found.problems["truncated"] += 1
            break
        _take(found, header, records, Member(records.get(b"path", header.name), content, size))
        found.end = content + size
        at, records = content + _padded(size), {}
    else:
        found.problems["truncated"] += at < file.size and not closed
        found.problems["no_end"] += at >= file.size and not closed
    found.problems = +found.problems
    found.bytes_read = file.bytes_read
    return found


def _take(found: TarScan, header: _Header, records: dict[bytes, bytes], member: Member) -> None:
    if header.type == b"S" or any(name.startswith(b"GNU.sparse.") for name in records):
        found.problems["sparse"] += 1
    elif header.type in (b"1", b"2"):
        found.problems["link"] += 1
    elif header.type in (b"3", b"4", b"6"):
        found.problems["special_file"] += 1
    elif header.type in (b"0", b"\0", b"7") and not member.name.endswith(b"/"):
        found.members.append(member)


def _parse(block: bytes) -> _Header | None:
    """The header in a block, or None if the block is not a valid header."""
    if len(block) < _BLOCK:
        return None  # the file has shrunk since it was opened
    try:
        stored = _number(block[148:156])
        if stored != sum(block) - sum(block[148:156]) + 256 and stored != _signed_sum(block):
            return None
        size = _number(block[124:136])
    except ValueError:
        return None
    if size < 0:
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    kind = block[156:157]
    return _Header(name, size, kind, continued=kind == b"S" and block[482] > 0)


def _signed_sum(block: bytes) -> int:
    """The checksum of some old tars, a sum of signed bytes."""
    return int(sum(struct.unpack("148b8x356b", block))) + 256


def _number(text: bytes) -> int:
    """Octal digits, or a big-endian binary number if the first bit is set (GNU). Raises ValueError."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    if text[0] == 0xFF:
        return int.from_bytes(text, "big", signed=True)
    return int(text.split(b"\0", 1)[0].strip() or b"0", 8)


def _record(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    """Parses an extension record: one value for GNU long names, lines `length key=value` for PAX."""
    if kind == b"L":
        return {b"path": content.split(b"\0", 1)[0]}
    if kind == b"K":
        return {}
    values: dict[bytes, bytes] = {}
    while content:
        length, _, _ = content.partition(b" ")
        end = _decimal(length, 0)
        name, equals, value = content[len(length) + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            break
        values[name] = value[:-1]
        content = content[end:]
    return values


def _decimal(text: bytes | None, default: int) -> int:
    return int(text) if text is not None and text.isdigit() and len(text) < 20 else default


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _next_header(file: Ranges, start: int) -> tuple[int, bool]:
    """Offset of the next valid header from `start` on, or the end of the file's last whole block.

    Also returns whether the skipped part contains anything but zeros.
    """
    at, damaged = start, False
    while at + _BLOCK <= file.size:
        data = file.read(_SEARCH, at)
        blocks = np.frombuffer(data, np.uint8, len(data) // _BLOCK * _BLOCK).reshape(-1, _BLOCK)
        if not len(blocks):
            break
        filled = np.any(blocks, axis=1).reshape(-1)
        for number in np.flatnonzero(np.all(_CHECKSUM_BYTES[blocks[:, 148:156]], axis=1) & filled).tolist():
            if _parse(blocks[number].tobytes()) is not None:
                return at + number * _BLOCK, damaged or bool(filled[:number].any())
        damaged = damaged or bool(filled.any())
        at += len(blocks) * _BLOCK
    return at, damaged


_CHECKSUM_BYTES = np.isin(np.arange(256), np.frombuffer(b"01234567 \0", np.uint8))


def _reject_other_formats(path: str, size: int, head: bytes) -> None:
    if size == 0:
        raise NotATar("empty_file", f"{path} is an empty file")
    for magic, reason in _FOREIGN:
        if head.startswith(magic):
            raise NotATar(reason, f"{path} is compressed, so single samples can't be read: unpack it to a plain tar")
    if head.lstrip()[:1] == b"<" and _parse(head) is None:
        raise NotATar("not_a_tar", f"{path} is a web page, not a tar: probably the error page of a failed download")
    if size < _BLOCK:
        raise NotATar("not_a_tar", f"{path} is not a tar: it has only {size} bytes")
