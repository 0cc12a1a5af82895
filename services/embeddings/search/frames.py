"""The files of added items: frames with checksums, one after the other.

A frame is MAGIC, uint32 bytes of the content, uint32 crc32 of the content, and the content: uint32 bytes of a JSON text, the text,
and a blob. All numbers are little-endian. What one request writes is one frame, so that it is found as a whole or not at all.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swav_platform.errors import UserError

MAGIC = b"item"
_HEAD = struct.Struct("<4sII")
_TEXT = struct.Struct("<I")

Frame = tuple[dict[str, Any], bytes]


def frame(told: dict[str, Any], blob: bytes = b"") -> bytes:
    text = json.dumps(told, separators=(",", ":")).encode("ascii")
    content = _TEXT.pack(len(text)) + text + blob
    return _HEAD.pack(MAGIC, len(content), zlib.crc32(content)) + content


def read_frames(path: Path, *, torn: bool) -> Iterator[tuple[Frame, int]]:
    """The frames of a file, each with the offset of its end.

    torn: the file may end in a frame that was being written, which is left out. Raises UserError for a damaged file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        end = 0
        while end < size:
            head = file.read(_HEAD.size)
            magic, length, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0, 0)
            content = file.read(length) if magic == MAGIC else b""
            if magic != MAGIC or len(content) < length or zlib.crc32(content) != checksum:
                # A machine that lost power may leave zeros where a frame was being written.
                if torn and (not head.strip(b"\0") or len(head) < _HEAD.size or end + _HEAD.size + length >= size):
                    return
                raise UserError(
                    f"{path} is damaged at byte {end:,}: what was added after it can't be read. Restore the file from a backup, or "
                    f"move its folder away and add the items again."
                )
            end += _HEAD.size + length
            cut = _TEXT.size + _TEXT.unpack_from(content)[0]
            yield (json.loads(content[_TEXT.size : cut]), content[cut:]), end
