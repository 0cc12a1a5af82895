"""Measures how much later the first row reaches the trainer with 100,000 shards than with ten.

Uses the data of stream_scale.py, with JPEGs as images. A fresh process starts a local Ray, opens the index and reads the rows of
one step from the streams as a rank does, alternately for ten shards and for many. Run it from the project's folder.

The last line is one JSON object. It holds medians of the seconds from opening the index to the first row, and of the requests
and bytes of the step. `peak_mb` is the highest resident size of any process alive at the end, in any round; `more_mb` is its
excess over that with ten shards. `rows` is the number of rows of the step.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from stream_scale import Server, in_turns, make_tars, middle, traffic

from swav_platform.cluster import session
from swav_platform.cluster.stream import open_streams, rank_rows
from swav_platform.config import load
from swav_platform.data.datasets import plan_of
from swav_platform.data.index.lookup import Index
from swav_platform.rows.job import RowJob

SETTINGS = ("data.row_size=64", "data.tasks=1", "train.batch=256")


def photograph(generator: np.random.Generator) -> bytes:
    """A JPEG of about 10 kB."""
    coarse = Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((160, 160)).save(buffer, "JPEG", quality=int(generator.integers(80, 95)))
    return buffer.getvalue()


def take(index: Path) -> dict[str, float]:
    """Reads one step's rows. Runs in a process of its own."""
    config = load(None, [*SETTINGS, f"data.index={index}"])
    with session.connected(config):
        began = time.perf_counter()
        opened = Index.open(index)
        plan_of(opened, config.data, config.seed)
        streams = open_streams(RowJob(config, str(opened.path)), 0, config.rows_per_step, 1)
        seconds, seen = [], 0
        for row in rank_rows(streams, 0):
            seconds.append(time.perf_counter() - began)
            seen += int((row.weight > 0).sum())
        if seen != config.train.batch:
            raise SystemExit(f"only {seen} of {config.train.batch} images could be read")
        return {"first_row_s": seconds[0], "rows": len(seconds), "peak_mb": max(peaks())}


def peaks() -> list[float]:
    """Peak resident sizes in MB of this process and its descendants."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
            except OSError:
                continue  # the process has exited
            parents[int(entry.name)] = int(lines["PPid"])
            found.append((int(entry.name), float(lines.get("VmHWM", "0 kB").split()[0]) / 1e3))

    def ours(process: int) -> bool:
        while process not in (0, 1, os.getpid()):
            process = parents.get(process, 0)
        return process == os.getpid()

    return [size for process, size in found if ours(process)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--take", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.take:
        print(json.dumps(take(given.take)))
        return
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--take"]
        pairs = in_turns(command, Server(make_tars(photograph)), Path(place), given.shards, given.rounds)
    answer = {
        "shards": given.shards,
        "first_row_s": round(middle(pairs, 1, "first_row_s"), 2),
        "first_row_s_ten_shards": round(middle(pairs, 0, "first_row_s"), 2),
        "later_s": round(statistics.median(many["first_row_s"] - few["first_row_s"] for few, many in pairs), 2),
        **traffic(pairs),
        "peak_mb": round(max(many["peak_mb"] for _, many in pairs), 1),
        "more_mb": round(max(many["peak_mb"] - few["peak_mb"] for few, many in pairs), 1),
        "rows": int(middle(pairs, 1, "rows")),
        "rounds": given.rounds,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
