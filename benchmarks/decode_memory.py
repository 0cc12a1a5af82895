"""Measures memory growth of a data worker that decodes and crops a mixed set of images repeatedly.

    python benchmarks/decode_memory.py [--images 100000] [--shards 'imagenet-sample-*.tar']

The set holds photographs (of the shards, or synthetic ones), every variety of small image of fuzz_decode.py, and as many damaged
ones. Prints one JSON line: `worker_mib` and `child_mib` are resident sizes at 10, 50 and 100 % of the images, and `growth_mib`
is the worker's growth from 10 to 100 %.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import time
from collections.abc import Sequence
from glob import glob
from pathlib import Path

import numpy as np
from fuzz_decode import child_peak
from mutations import image_at, photograph, seeds

from swav_platform.config import Config
from swav_platform.data.index.lookup import IndexLine
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.order.plan import RowSpec
from swav_platform.images.decoding import confined
from swav_platform.rows.make import make_row

MARKS = (0.1, 0.5, 1.0)


def mixed(pattern: str | None) -> list[bytes]:
    """Four copies of each photograph, small images of every variety, and damaged ones, shuffled."""
    rng = np.random.default_rng(0)
    by_format = seeds(rng)
    small = [data for varieties in by_format.values() for data in varieties]
    damaged = [image_at(number, by_format) for number in range(len(small))]
    if pattern:
        photographs = [data for path in sorted(glob(pattern)) for data in _members(path)]
    else:
        photographs = [_jpeg(rng) for _ in range(60)]
    everything = photographs * 4 + small + damaged
    return [everything[place] for place in rng.permutation(len(everything))]


def _members(path: str) -> list[bytes]:
    with tarfile.open(path) as tar:
        return [file.read() for member in tar if member.name.endswith(".jpg") and (file := tar.extractfile(member))]


def _jpeg(rng: np.random.Generator) -> bytes:
    out = io.BytesIO()
    width, height = (int(side) for side in rng.integers(200, 700, 2))
    photograph(rng, width, height).save(out, "JPEG", quality=85)
    return out.getvalue()


def resident(pid: int | str) -> float:
    """Resident size of a process in MiB."""
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--shards")
    options = parser.parse_args()
    images, config, begin = mixed(options.shards), Config(), time.time()
    size = config.data.row_size
    rows = options.images // size
    worker, child, counts = [], [], dict.fromkeys(Outcome, 0)

    def fetch(samples: Sequence[int]) -> dict[int, tuple[IndexLine, bytes]]:
        return {n: (IndexLine(n, str(n), "shard.tar", 0, 0, "jpg", None), images[n]) for n in samples}

    for k in range(rows):
        positions = np.arange(k * size, (k + 1) * size)
        spec = RowSpec(k, positions, positions % len(images), np.zeros(size, bool))
        row = make_row(spec, fetch, lambda position, attempt: (position + attempt * 7919) % len(images), config)
        for outcome in row.outcome.tolist():
            counts[Outcome(outcome)] += 1
        if k + 1 in [round(rows * mark) for mark in MARKS]:
            worker.append(resident("self"))
            alive = getattr(confined._here, "child", None)
            child.append(resident(alive._process.pid) if alive else 0.0)
            print(f"{(k + 1) * size} images, {worker[-1]} and {child[-1]} MiB", file=sys.stderr, flush=True)
    figures = {"images": rows * size, "worker_mib": worker, "child_mib": child, "growth_mib": round(worker[-1] - worker[0], 1)}
    outcomes = {outcome.word: count for outcome, count in counts.items() if count}
    seconds = {"outcomes": outcomes, "child_peak_mib": child_peak(), "seconds": round(time.time() - begin)}
    print(json.dumps(figures | seconds))


if __name__ == "__main__":
    main()
