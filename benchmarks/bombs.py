"""Measures the cost of refusing decompression bombs: images of few bytes that take many pixels, much time or much memory.

    python benchmarks/bombs.py [--repeat 5]

Decodes each bomb in a fresh process and prints one JSON line. `refused` lists for each bomb the outcome, the median milliseconds
of repeated refusals, the MiB added to the process and its decoding child, and what refused it (child or header).
`worst_ms` and `worst_mib` are the maxima.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable

from PIL import Image

SIDE = 60_000


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*parts: bytes, width: int = 64, height: int = 64, depth: int = 8, colour: int = 2) -> bytes:
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + width * 3) * height)) if width * height < 10**6 else b"")
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(parts) + pixels + chunk(b"IEND", b"")


def zeros(mebibytes: int) -> bytes:
    """Zeros, compressed about a thousandfold by deflate."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(mebibytes)), packer.flush()])


def saved(name: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, name, **options)
    return out.getvalue()


def gif(frames: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 20, 20, 0x80, 0, 0) + bytes(6)
    first = b"," + struct.pack("<HHHHB", 0, 0, 20, 20, 0) + b"\x02\x03\x44\x01\x05\0"
    return head + first + (b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0") * frames + b";"


def tiff(width: int, height: int, *, big: bool = False) -> bytes:
    entry = struct.Struct("<HHQQ" if big else "<HHII")
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (279, 4, 1, 9),
    ]
    body = b"".join(entry.pack(*tag) for tag in tags)
    if big:
        return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(tags)) + body + bytes(8)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)


def scans(count: int) -> bytes:
    """A JPEG whose scans, of a dozen bytes each, cover all its pixels again and again."""
    out = io.BytesIO()
    Image.new("L", (6000, 6000)).save(out, "JPEG", progressive=True)
    return out.getvalue()[:-2] + b"\xff\xda\0\x08\1\1\0\1?\0\0" * count + b"\xff\xd9"


def avif(side: int) -> bytes:
    size = b"\0\0\0\x14ispe" + struct.pack(">III", 0, side, side)
    boxes = size
    for name in (b"ipco", b"iprp"):
        boxes = struct.pack(">I", len(boxes) + 8) + name + boxes
    return b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + struct.pack(">I", len(boxes) + 12) + b"meta\0\0\0\0" + boxes


BOMBS: dict[str, Callable[[], bytes]] = {
    "png_60000x60000": lambda: png(width=SIDE, height=SIDE),
    "png_60000x60000_pixels": lambda: (
        png(width=SIDE, height=SIDE, depth=1, colour=0)[:-24] + chunk(b"IDAT", zeros(430)) + chunk(b"IEND", b"")
    ),
    "png_16bit_7900x7900": lambda: png(width=7900, height=7900, depth=16, colour=6),
    "png_iccp": lambda: png(chunk(b"iCCP", b"icc\0\0" + zeros(64))),
    "png_itxt": lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros(64))),
    "png_ztxt": lambda: png(chunk(b"zTXt", b"Comment\0\0" + zeros(500))),
    "png_exif_in_text": lambda: png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros(64))),
    "png_many_texts": lambda: png(*[chunk(b"zTXt", b"Comment\0\0" + zeros(1))] * 90),
    "png_a_million_chunks": lambda: png(*[chunk(b"tEXt", b"a\0b")] * 1_000_000),
    "gif_a_million_frames": lambda: gif(1_000_000),
    "gif_65535x65535": lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;",
    "gif_huge_first_frame": lambda: b"GIF89a\x20\0\x20\0\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;",
    "webp_16384x16384": lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0",
    "webp_vp8l_16384x16384": lambda: b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f\xff\xff\xff\x0f\0\0\0\0\0",
    "webp_16777216x256": lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\0\0",
    "tiff_100000x100000": lambda: tiff(100_000, 100_000),
    "tiff_big_gigapixels": lambda: tiff(10**6, 10**6, big=True),
    "bmp_60000x60000": lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0),
    "bmp_run_lengths": lambda: (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 7000, 7000, 1, 8, 1, 0, 0, 0, 0, 0) + b"\x01\x02" * 2**23
    ),
    "avif_60000x60000": lambda: avif(SIDE),
    "jpeg_65500x65500": lambda: saved("JPEG").replace(b"\x01\0\x01\0\x03", b"\xff\xdc\xff\xdc\x03", 1),
    "jpeg_20000_scans": lambda: scans(20_000),
}

ONE = """
import json, resource, statistics, sys, time
from pathlib import Path
from swav_platform.config import ImagePolicy
from swav_platform.images.decoding import confined
from swav_platform.images.decoding.decode import decode
from swav_platform.images.decoding.refused import Refused

def peak(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024

data, policy, times = sys.stdin.buffer.read(), ImagePolicy(), []
child = confined._child()
child_pid = child.pid
before = peak("self"), peak(child_pid)
for _ in range(int(sys.argv[1])):
    begin = time.perf_counter()
    try:
        decode(data, policy)
        outcome = "ok"
    except Refused as refused:
        outcome = refused.outcome.word
    times.append(time.perf_counter() - begin)
after = peak("self"), peak(child_pid)
print(json.dumps([outcome, statistics.median(times) * 1e3, sum(after) - sum(before), child.images]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    refused, worst, begin = {}, {"ms": 0.0, "mib": 0.0}, time.time()
    for name, make in BOMBS.items():
        data = make()
        done = subprocess.run([sys.executable, "-c", ONE, str(options.repeat)], input=data, capture_output=True, check=True)
        outcome, milliseconds, mib, asked = json.loads(done.stdout)
        refused[name] = [outcome, round(milliseconds, 1), round(mib, 1), "child" if asked else "header"]
        worst = {"ms": max(worst["ms"], milliseconds), "mib": max(worst["mib"], mib)}
        print(name, f"{len(data):,} bytes", *refused[name], file=sys.stderr, flush=True)
    unrefused = [name for name, (outcome, *_) in refused.items() if outcome == "ok"]
    figures = {
        "bombs": len(refused),
        "unrefused": unrefused,
        "worst_ms": round(worst["ms"], 1),
        "worst_mib": round(worst["mib"], 1),
    }
    print(json.dumps(figures | {"refused": refused, "seconds": round(time.time() - begin)}))


if __name__ == "__main__":
    main()
