"""Estimates from an image's header what decoding will cost. Nothing is decoded here, and no codec is used.

Each reader looks at a few bytes of untrusted data with bounded work. It returns None for a header that it does not understand;
such an image is left to Pillow, in the child.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from typing import NoReturn

from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decoding.jpeg import segments
from swav_platform.images.decoding.refused import Refused

MAX_INFLATED = 16 * 2**20
"""Bytes to which the texts and colour profiles of one PNG may inflate. Pillow's own limit, 1 MiB, refuses good photographs."""

MAX_PARTS = 16_384
"""Limit of the chunks of a PNG, which Pillow reads one by one in Python. 64 MiB in libpng's chunks are 8,192."""

MAX_FRAMES = 50_000
"""Limit of the frames in the first 4 MiB of a GIF. Only the first is decoded, but no photograph has so many."""

_DEFLATE_RATIO = 1032  # bytes that a byte of deflate inflates to at most
_FAX = (2, 3, 4, 32771)  # TIFF compressions that are CCITT fax codes


@dataclass(frozen=True)
class Cost:
    """Size in pixels; `seconds` of CPU time and `memory` in bytes are estimates, and rather too high than too low."""

    width: int
    height: int
    seconds: float
    memory: int
    deep: bool = False  # more than 8 bits a channel

    def check(self, policy: ImagePolicy) -> None:
        """Raises Refused for an image that is too expensive. The estimate does not depend on the machine."""
        size = f"{self.width}x{self.height} pixels"
        if self.seconds > policy.decode_seconds:
            limit = f"data.images.max_decode_seconds is {policy.decode_seconds:g}"
            raise Refused(Outcome.DECODE_TIMEOUT, f"{size} would take about {self.seconds:.1f} s, {limit}")
        if self.memory > policy.decode_bytes:
            limit = f"data.images.max_decode_bytes is {policy.decode_bytes:,}"
            raise Refused(Outcome.DECODE_MEMORY, f"{size} would take {self.memory / 2**20:.0f} MiB, {limit}")


def cost_of(data: bytes, name: str) -> Cost | None:
    """The cost of an image of this format, by its header; None if the header does not say.

    Raises Refused for images whose size is harmless but whose content is not: texts that inflate, endless chunks or frames, fax codes.
    """
    reader = _READERS.get(name)
    try:
        return reader(data) if reader else None
    except (struct.error, IndexError, OverflowError):  # the header is cut off
        return None


def _linear(width: int, height: int, nanoseconds: float, memory: float) -> Cost:
    """Cost proportional to the pixels. Callers' figures were measured on one core with 16 megapixels of noise, times 1.0-1.5."""
    pixels = width * height
    return Cost(width, height, pixels * nanoseconds * 1e-9, int(pixels * memory))


def _png(data: bytes) -> Cost | None:
    _check_chunks(data)
    if data[12:16] != b"IHDR":
        return None
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    raw = width * height * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 4) // 8
    pixels = width * height
    return Cost(width, height, (raw * 4 + len(data) * 8 + pixels * 4) * 1e-9, pixels * 7, depth == 16)


def _check_chunks(data: bytes) -> None:
    at, parts, inflated = 8, 0, 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND":
            return
        if kind in (b"iCCP", b"zTXt", b"iTXt"):
            inflated += _inflated(data[at + 8 : at + 8 + size], kind, MAX_INFLATED - inflated)
            if inflated > MAX_INFLATED:
                raise Refused(Outcome.DECODE_MEMORY, f"PNG: its texts inflate to more than {MAX_INFLATED:,} bytes")
        at, parts = at + 12 + size, parts + 1
        if parts > MAX_PARTS:
            raise Refused(Outcome.DECODE_TIMEOUT, f"PNG: more than {MAX_PARTS:,} chunks")


def _inflated(chunk: bytes, kind: bytes, limit: int) -> int:
    """Upper bound of the bytes that a compressed text inflates to; counted exactly only where it could exceed `limit`."""
    _, _, rest = chunk[:80].partition(b"\0")
    start = len(chunk[:80]) - len(rest) + 1  # after the keyword and the byte that names the method
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return len(chunk)
        start = chunk.find(b"\0", chunk.find(b"\0", start + 1) + 1) + 1
    if (len(chunk) - start) * _DEFLATE_RATIO <= limit:
        return (len(chunk) - start) * _DEFLATE_RATIO
    inflater, count = zlib.decompressobj(), 0
    try:
        for begin in range(start, len(chunk), 2**14):
            piece = chunk[begin : begin + 2**14]
            while piece and count <= limit:
                count += len(inflater.decompress(piece, 2**18))
                piece = inflater.unconsumed_tail
                done = begin + 2**14 - len(piece) - start
                if count > MAX_INFLATED // 4 and count * (len(chunk) - start) > 2 * limit * done:
                    return limit + 1  # at this ratio the rest exceeds it by far
    except zlib.error:
        pass  # the decoder will fail on it too
    return count


def _gif(data: bytes) -> Cost:
    # Each frame but the first follows a block's end: 00 2C. In compressed pixels this pair is as rare as any other.
    frames = data.count(b"\0,", 0, 2**22)
    if frames > MAX_FRAMES:
        raise Refused(Outcome.DECODE_TIMEOUT, f"GIF: {frames:,} frames or more")
    width, height = struct.unpack_from("<HH", data, 6)
    return _linear(width, height, nanoseconds=20, memory=9)


def _webp(data: bytes) -> Cost | None:
    """The decoder allocates the whole canvas twice as soon as it is opened."""
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        size = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    elif chunk == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif chunk == b"VP8 " and len(data) >= 30:
        size = int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    else:
        return None
    return _linear(size[0], size[1], nanoseconds=30, memory=16)


def _bmp(data: bytes) -> Cost:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return _linear(width, height, nanoseconds=12, memory=7)
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    cost = _linear(abs(width), abs(height), nanoseconds=12, memory=7)
    if compression in (1, 2):  # run lengths, which Pillow expands in Python
        return Cost(cost.width, cost.height, cost.seconds + len(data) * 3e-7, cost.memory + cost.width * cost.height)
    return cost


_UNREADABLE = {(64, n, order) for n in range(1, 5) for order in "<>"} | {(16, 3, "<"), (16, 3, ">"), (32, 1, ">")}
"""Bits, sample format and byte order of TIFFs that Pillow does not read."""


def _tiff(data: bytes) -> Cost | None:
    """By the first directory, of classic TIFF or BigTIFF. Raises Refused for fax codes and values that Pillow does not read."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in struct.unpack_from(order + "H", data, 2)
    place = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, place)[0]
    tags: dict[int, int] = {}
    bits = sample_format = 1
    for number in range(min(count, 1000)):
        entry = place + (8 + 20 * number if big else 2 + 12 * number)
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (256, 257, 259) and kind in (3, 4):
            tags[tag] = struct.unpack_from(order + " HI"[kind - 2], data, entry + (12 if big else 8))[0]
        if tag == 258 and kind == 3:
            bits = _first_short(data, entry + 4, order, big)
        if tag == 339 and kind == 3:
            sample_format = _first_short(data, entry + 4, order, big)
    if tags.get(259) in _FAX:
        refuse_fax()
    if (bits, sample_format, order) in _UNREADABLE:
        kind = {1: "unsigned ", 3: "floating-point "}.get(sample_format, "")
        end = " in big-endian order" if bits == 32 else ""
        raise Refused(Outcome.UNSUPPORTED_FORMAT, f"TIFF with {kind}values of {bits} bits{end} can't be decoded here: convert it")
    if 256 not in tags or 257 not in tags:
        return None
    return replace(_linear(tags[256], tags[257], nanoseconds=22, memory=9), deep=bits > 8)


def _first_short(data: bytes, place: int, order: str, big: bool) -> int:
    """The first of the 16-bit values of a directory entry; `place` is that of their count. They are elsewhere if there are many."""
    wide, size = ("Q", 8) if big else ("I", 4)
    count = struct.unpack_from(order + wide, data, place)[0]
    start = place + size if 2 * count <= size else struct.unpack_from(order + wide, data, place + size)[0]
    return int(struct.unpack_from(order + "H", data, start)[0])


def refuse_fax() -> NoReturn:
    """libtiff takes a bad code for the end of the picture, and leaves the rest as uninitialised memory."""
    raise Refused(Outcome.UNSUPPORTED_FORMAT, "TIFF with fax compression (CCITT group 3 or 4) can't be decoded here: convert it")


def _avif(data: bytes) -> Cost | None:
    """By the largest of its items or tracks (the boxes `ispe`)."""
    head, at = data[: 2**16], -1
    sizes: list[tuple[int, int]] = []
    while (at := head.find(b"ispe", at + 1)) >= 0 and len(sizes) < 1000:
        width, height = struct.unpack_from(">II", head, at + 8)
        sizes.append((width, height))
    if not sizes:
        return None
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return _linear(width, height, nanoseconds=30, memory=15)


def _jpeg(data: bytes) -> Cost | None:
    frame = next((part for part in segments(data) if part.is_frame), None)
    if frame is None:
        return None
    kind = frame.kind
    _, height, width, components = struct.unpack_from(">BHHB", data, frame.start)
    pixels = max(width * height, 2**16)
    scans = data.count(b"\xff\xda")
    entropy = len(data) * (60 if kind >= 0xC9 else 15)  # arithmetic coding is slow
    coefficients = 2 * components if kind in (0xC2, 0xCA) or scans > 1 else 0  # bytes a pixel, held until the last scan
    seconds = (pixels * (2 + components * 2 + scans * 0.8) + entropy) * 1e-9
    return Cost(width, height, seconds, width * height * (coefficients + (3 if components < 4 else 7)))


_READERS = {"PNG": _png, "GIF": _gif, "WEBP": _webp, "BMP": _bmp, "TIFF": _tiff, "AVIF": _avif, "JPEG": _jpeg}


_WORST = {"PNG": (20, 7), "GIF": (20, 9), "WEBP": (30, 16), "BMP": (12, 7), "TIFF": (22, 9), "AVIF": (30, 15), "JPEG": (20, 9)}
"""Nanoseconds and bytes for a pixel of an ordinary colour image of 8 bits, as the readers estimate them. JPEG: a progressive one."""


def most_pixels(policy: ImagePolicy) -> dict[str, int]:
    """For each accepted format, the number of pixels up to which the limits on time and memory accept an ordinary image."""
    return {
        name: min(int(policy.decode_seconds * 1e9 / _WORST[name][0]), policy.decode_bytes // _WORST[name][1])
        for name in policy.formats
    }
