"""Parses the segments of a JPEG before its pixels, and its orientation. No codec is used."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_SEGMENTS = 1000
"""Limit of the segments before the pixels. A colour profile or a depth map may take some hundreds."""

_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))  # markers without a length
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class Unusual(Exception):
    """A JPEG that is left to Pillow."""


class Segment(NamedTuple):
    """A marker FF `kind`; its content is data[start:end]."""

    kind: int
    start: int
    end: int

    @property
    def is_frame(self) -> bool:
        return 0xC0 <= self.kind <= 0xCF and self.kind not in (0xC4, 0xC8, 0xCC)


def segments(data: bytes) -> Iterator[Segment]:
    """Segments up to the first scan, and no more than MAX_SEGMENTS + 1 of them."""
    at = 2
    for _ in range(MAX_SEGMENTS + 1):
        at = data.find(b"\xff", at) + 1
        if not at:
            return
        while data[at : at + 1] == b"\xff":  # fill bytes
            at += 1
        if at + 3 > len(data) or data[at] in (0xD9, 0xDA):
            return
        kind = data[at]
        size = 0 if kind in _ALONE else int.from_bytes(data[at + 1 : at + 3], "big")
        yield Segment(kind, at + 3, at + 1 + size)
        at += 1 + size


def orientation(data: bytes) -> int:
    """EXIF orientation 1-8 as Pillow finds it: in EXIF, else in XMP; 1 where it is missing or invalid.

    Raises Unusual for too many segments, and for EXIF data that ordinary programs do not write.
    """
    exif, xmp = [], b""
    for number, (kind, start, end) in enumerate(segments(data)):
        if number >= MAX_SEGMENTS:
            raise Unusual
        if kind == 0xE1 and data.startswith(_EXIF, start):
            exif.append(data[start + len(_EXIF) : end])
        elif kind == 0xE1 and data.startswith(_XMP, start):
            xmp = data[start + len(_XMP) : end]
    if len(exif) > 1:
        raise Unusual
    found = _from_exif(exif[0]) if exif else None
    if found is None:
        match = _XMP_ORIENTATION.search(xmp)
        found = int(match[1]) if match else 1
    return found if 1 <= found <= 8 else 1


def _from_exif(exif: bytes) -> int | None:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise Unusual
    found = None
    try:
        place = struct.unpack_from(order + "I", exif, 4)[0]
        for number in range(struct.unpack_from(order + "H", exif, place)[0]):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, place + 2 + 12 * number)
            if tag == 0x0112 and (kind, count) != (3, 1):
                raise Unusual
            found = value if tag == 0x0112 else found
    except struct.error:
        raise Unusual from None
    return found
