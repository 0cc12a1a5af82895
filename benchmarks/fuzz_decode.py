"""Fuzzes decoding with mutated images and tars. Each must be decoded or refused with a reason, and agree with plain Pillow.

    python benchmarks/fuzz_decode.py [--images 20000] [--tars 2000] [--first 0]

Prints one JSON line, in which these should be 0:

crashes, hangs       Decoding failed without a reason, or took more than two seconds of CPU time.
not_as_pillow        The pixels differ from Pillow's.
refused_alone        The image was refused, although Pillow decodes it and the policy allows it.
reduced_otherwise    A JPEG decoded at 1/2, 1/4 or 1/8 has another outcome or size than the whole one.

Failures go to standard error with the number of the input, from which it can be reproduced (--first).
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cpu_time import cpu_seconds
from mutations import image_at, seeds, tar_at
from PIL import Image, ImageOps

from swav_platform.config import ImagePolicy
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.magic import format_of
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.errors import UserError
from swav_platform.images.decoding import confined
from swav_platform.images.decoding.decode import Decoded, decode_reduced
from swav_platform.images.decoding.refused import Refused

POLICY = ImagePolicy(min_side=1, max_aspect=1e9)
HANG = 2.0  # CPU seconds, which do not depend on other programs of the machine
TOLERANCE = 4  # of 255; versions of libjpeg-turbo differ
_malloc, _PERTURB = ctypes.CDLL(None), -6
LIMITS = {Outcome.TOO_MANY_PIXELS, Outcome.DECODE_MEMORY, Outcome.DECODE_TIMEOUT}


@dataclass
class Found:
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def note(self, what: str, where: str) -> None:
        self.wrong[what] += 1
        print(f"{what}: {where}", file=sys.stderr, flush=True)


def attempt(data: bytes, found: Found, where: str, parts: int = 1) -> Decoded | Refused | None:
    """Decodes `data`, at 1/parts where the format allows it, and notes failures."""
    begin = cpu_seconds()
    result: Decoded | Refused | None = None
    try:
        result = decode_reduced(data, POLICY, lambda height, width: parts)
    except Refused as refused:
        result = refused
    except Exception as error:
        found.note("crashes", f"{where}: {type(error).__name__}: {error}")
    seconds = cpu_seconds() - begin
    found.slowest = max(found.slowest, seconds)
    if seconds > HANG:
        found.note("hangs", f"{where}: {seconds:.1f} s, {result if isinstance(result, Refused) else ''}")
    if isinstance(result, Refused) and result.outcome is Outcome.DECODE_CRASH:
        found.note("crashes", f"{where}: {result}")
    if parts == 1:
        found.outcomes[result.outcome.word if isinstance(result, Refused) else "ok"] += 1
    return result


def reduced(data: bytes, whole: Decoded | Refused | None, parts: int, found: Found, where: str) -> None:
    """Checks that a JPEG at 1/parts has the outcome and size of the whole one, and if it was decoded whole, its pixels."""
    small = attempt(data, found, f"{where} at 1/{parts}", parts)
    if not isinstance(small, Decoded) or not isinstance(whole, Decoded):
        if isinstance(small, Decoded) != isinstance(whole, Decoded):
            found.note("reduced_otherwise", f"{where} at 1/{parts}: {small} and {whole}")
        return
    if small.parts == 1:
        same = np.array_equal(small.pixels, whole.pixels)
    else:
        found.wrong["reduced"] += 1
        sides = (-(-whole.height // parts), -(-whole.width // parts))
        same = (small.height, small.width) == (whole.height, whole.width) and small.pixels.shape == (*sides, 3)
    if not same:
        found.note("reduced_otherwise", f"{where} at 1/{parts}: {small.pixels.shape} and {whole.pixels.shape}")


def pillow(data: bytes) -> np.ndarray | str | None:
    """Plain Pillow's result; "chance" if it contains memory that no decoder has written."""
    first = _pillow(data)
    if not isinstance(first, np.ndarray):
        return first
    _malloc.mallopt(_PERTURB, 0x5A)
    second = _pillow(data)
    _malloc.mallopt(_PERTURB, 0)
    return first if isinstance(second, np.ndarray) and np.array_equal(first, second) else "chance"


def _pillow(data: bytes) -> np.ndarray | str | None:
    """Plain Pillow's pixels: RGB on white, upright. The mode if RGB is ambiguous for it, None if Pillow fails."""
    try:
        with Image.open(io.BytesIO(data), formats=POLICY.formats) as opened:
            if opened.width * opened.height >= POLICY.max_pixels:
                return None
            opened.load()
            image: Image.Image = opened
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return image.mode
            try:
                image = ImageOps.exif_transpose(image)
            except Exception:
                return "metadata"
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))


class Reference:
    """Plain Pillow in a separate process, because it may crash or hang."""

    def __init__(self) -> None:
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_limit)

    def ask(self, data: bytes) -> Future[Any]:
        try:
            return self._pool.submit(pillow, data)
        except BrokenProcessPool:
            self._pool = self._start()
            return self._pool.submit(pillow, data)

    def result(self, future: Future[Any]) -> np.ndarray | str | None:
        try:
            answer: np.ndarray | str | None = future.result(60)
            return answer
        except (BrokenProcessPool, TimeoutError):
            for process in self._pool._processes.values():
                process.kill()
            self._pool = self._start()
            return None


def compare(result: Decoded | Refused | None, theirs: np.ndarray | str | None, found: Found, where: str) -> None:
    ours = result.pixels if isinstance(result, Decoded) else result
    if isinstance(theirs, np.ndarray) and isinstance(ours, Refused) and ours.outcome not in LIMITS:
        found.note("refused_alone", f"{where}: {ours}")
    if isinstance(theirs, str):
        found.wrong["chance"] += theirs == "chance"
    if isinstance(theirs, np.ndarray) and isinstance(ours, np.ndarray):
        same = ours.shape == theirs.shape and np.abs(ours.astype(np.int16) - theirs).max(initial=0) <= TOLERANCE
        found.wrong["compared"] += 1
        if not same:
            found.note("not_as_pillow", f"{where}: {ours.shape} and {theirs.shape}")


def images(first: int, count: int, found: Found) -> None:
    """Decodes mutated images and compares them with Pillow."""
    by_format, reference = seeds(np.random.default_rng(0)), Reference()
    for number in range(first, first + count):
        data = image_at(number, by_format)
        theirs = reference.ask(data)
        ours = attempt(data, found, f"image {number}")
        compare(ours, reference.result(theirs), found, f"image {number}")
        if format_of(data) == "JPEG":
            reduced(data, ours, (2, 4, 8)[number % 3], found, f"image {number}")
        if number % 1000 == 999:
            print(f"{number + 1} images", file=sys.stderr, flush=True)


def tars(first: int, count: int, found: Found) -> Counter[str]:
    """Indexes and reads mutated tars and decodes each sample."""
    by_format, seen = seeds(np.random.default_rng(0)), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            path = Path(folder) / "shard.tar"
            path.write_bytes(tar_at(number, by_format))
            begin = cpu_seconds()
            try:
                samples = _samples(path, Path(folder) / f"index-{number}")
            except UserError:
                seen["refused"] += 1
                continue
            except Exception as error:
                found.note("crashes", f"tar {number}: {type(error).__name__}: {error}")
                continue
            seconds = cpu_seconds() - begin
            if seconds > HANG:
                found.note("hangs", f"tar {number}: {seconds:.1f} s")
            seen["indexed"] += 1
            for key, data in samples.items():
                if isinstance(data, ReadFailure):
                    seen["unread"] += 1
                else:
                    seen["samples"] += 1
                    attempt(data, found, f"tar {number} sample {key}")
    return seen


def _samples(path: Path, folder: Path) -> dict[int, bytes | ReadFailure]:
    build_index([str(path)], folder)
    index = Index.open(folder)
    return read_samples(index.lines(range(index.samples)), max_bytes=POLICY.max_bytes)


def child_peak() -> int:
    """Peak MiB of the decoding child and of earlier ones."""
    child = getattr(confined._here, "child", None)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    if child is None:
        return ended
    lines = Path(f"/proc/{child._process.pid}/status").read_text().splitlines()
    return max(ended, int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--tars", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    found, begin = Found(), time.time()
    tar_counts = tars(options.first, options.tars, found)
    images(options.first, options.images, found)
    counts = {name: found.wrong[name] for name in ("crashes", "hangs", "not_as_pillow", "refused_alone", "reduced_otherwise")}
    counts |= {name: found.wrong[name] for name in ("compared", "reduced", "chance")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures = {"slowest_seconds": round(found.slowest, 2), "worker_mib": peak, "child_mib": child_peak()}
    inputs = {"images": options.images, "tars": options.tars, "tar": dict(tar_counts), "outcomes": dict(found.outcomes)}
    print(json.dumps(counts | figures | inputs | {"seconds": round(time.time() - begin)}))


if __name__ == "__main__":
    main()
