"""Checks the guarantees of the stream and measures their cost. --question chooses the measurement:

splits    Whether each position arrives exactly once, for 1 to 3 streams and 1 to 4 ranks, one epoch each.
costs     The share of throughput that ordering costs, and the share that the checks cost.
poison    The seconds that a sample which always kills its worker delays the stream.

    python benchmarks/stream_exact.py [--data PATTERN] [--question splits] [--rounds 3] [key=value ...]

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from swav_platform.cluster import session
from swav_platform.cluster.segments import Segments, StreamSplit, dataset
from swav_platform.cluster.stream import OpenStreams, open_streams, rank_rows
from swav_platform.config import load
from swav_platform.data.index.build import build_index
from swav_platform.data.index.sources import expand
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.samples import read_samples
from swav_platform.rows.job import RowJob, open_index
from swav_platform.rows.layout import Row
from swav_platform.rows.table import from_table

TASKS = 2
TINY = ["views.large.size=16", "views.small.size=8", "views.small.count=2", "data.row_size=4", "data.window=2", "data.segment=24"]

DEADLY_DECODER = """
import hashlib, os, signal

def deadly():
    from swav_platform.rows import make

    def fatal(data, *rest, decode=make.decode_reduced):
        with open(os.environ["POISON"]) as poison:
            if hashlib.md5(data).hexdigest() == poison.read():
                os.kill(os.getpid(), signal.SIGKILL)
        return decode(data, *rest)

    make.decode_reduced = fatal

if "POISON" in os.environ:
    deadly()
"""


def splits(job: RowJob, rounds: int) -> dict[str, Any]:
    found = {}
    for streams in (1, 2, 3):
        for ranks in (1, 2, 3, 4):
            data = job.config.data.model_copy(update={"streams": streams})
            name, this = f"{streams}x{ranks}", replace(job, config=job.config.model_copy(update={"data": data}))
            found[name] = _one_epoch(this, ranks)
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    return {"ok": all(split["ok"] for split in found.values()), "splits": found, "rounds": 1}


def _one_epoch(job: RowJob, ranks: int) -> dict[str, Any]:
    """Counts positions, duplicates, missing positions, unseen samples, and ranks whose rows are wrong or out of order."""
    began, plan = time.perf_counter(), job.plan()
    rows, size = plan.plan.rows_per_epoch, job.config.data.row_size
    streams = open_streams(job, 0, rows, ranks)
    taken: list[list[Row]] = [[] for _ in range(ranks)]

    def take(rank: int) -> None:
        for row in rank_rows(streams, rank):
            taken[rank].append(replace(row, views=[], params=[], packed=np.empty(0, np.uint8)))

    threads = [threading.Thread(target=take, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    _end(streams)
    positions = np.concatenate([row.position for mine in taken for row in mine])
    seen = np.unique(np.concatenate([row.sample for mine in taken for row in mine]))
    result = {
        "positions": len(positions),
        "doubled": len(positions) - len(np.unique(positions)),
        "missing": rows * size - len(np.unique(positions)),
        "samples_unseen": plan.plan.spec.samples - len(seen),
        "ranks_astray": sum([row.row for row in mine] != list(range(rank, rows, ranks)) for rank, mine in enumerate(taken)),
    }
    right = result["positions"] == rows * size and not any(
        result[name] for name in ("doubled", "missing", "samples_unseen", "ranks_astray")
    )
    return result | {"seconds": round(time.perf_counter() - began, 1), "ok": right}


def costs(job: RowJob, rounds: int) -> dict[str, Any]:
    """Measures one segment with and without ordering, and two checks: the row number, and attempts per task in the actor."""
    rows = 24 * TASKS
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for ordered in rates:
            rates[ordered].append(_rate(job, rows, ordered))
    streams = open_streams(job, 0, rows, 1)
    [segments] = streams.segments
    ray.get(segments.start_chunk.remote(-1))
    counting = timeit.timeit(lambda: ray.get(segments.start_chunk.remote(-1)), number=200) / 200
    _end(streams)
    row = next(_rows(job, 1, True))
    comparing = timeit.timeit(lambda: row is None or row.row != 0, number=10_000) / 10_000  # as in the training loop
    a_row = 1 / statistics.median(rates[True])
    data = job.config.data
    piece = max(1, data.block * data.window // data.row_size)
    return {
        "preserve_order_cost": round(1 - statistics.median(a / b for a, b in zip(*rates.values(), strict=True)), 3),
        "check_cost": round((comparing + counting / piece) / a_row, 5),
        "microseconds": {"comparing_a_row": round(1e6 * comparing, 2), "counting_a_piece": round(1e6 * counting)},
        "rows_per_second": {
            "ordered": round(statistics.median(rates[True]), 2),
            "unordered": round(statistics.median(rates[False]), 2),
        },
    }


def _rate(job: RowJob, rows: int, ordered: bool) -> float:
    stream = _rows(job, rows, ordered)
    next(stream)
    began = time.perf_counter()
    count = sum(1 for _ in stream)
    seconds = time.perf_counter() - began
    assert count == rows - 1
    time.sleep(1)  # until Ray has released the CPUs
    return count / seconds


def _rows(job: RowJob, rows: int, ordered: bool) -> Iterator[Row]:
    split = StreamSplit(0, 1, 0, rows, 1, rows)
    segments = Segments.remote(job, split)  # type: ignore[attr-defined]
    made = dataset(job, split, 0, rows, segments)
    made.context.execution_options.preserve_order = ordered
    [share] = made.streaming_split(1, equal=False)
    tables: Any = share.iter_batches(batch_size=None, batch_format="pyarrow")  # type: ignore[arg-type]
    try:
        yield from map(from_table, tables)
    finally:
        ray.kill(segments)


def poison(job: RowJob, rounds: int) -> dict[str, Any]:
    """The same rows without and with a deadly sample: total seconds, the longest wait for a row, and crash outcomes."""
    rows, found = 96, []
    [victim] = job.plan().row(rows // 2).samples[:1].tolist()
    [content] = read_samples(open_index(job.index).lines([victim])).values()
    assert isinstance(content, bytes)
    for _ in range(rounds):
        result = {}
        for name, deadly in (("clean", ""), ("poisoned", hashlib.md5(content).hexdigest())):
            Path(os.environ["POISON"]).write_text(deadly)
            streams = open_streams(job, 0, rows, 1)
            waits, crashed, before = [], 0, time.perf_counter()
            for row in rank_rows(streams, 0):
                waits.append(time.perf_counter() - before)
                crashed += int((row.outcome == Outcome.DECODE_CRASH).sum())
                before = time.perf_counter()
            _end(streams)
            assert len(waits) == rows
            result[name] = {"seconds": sum(waits), "longest": max(waits[1:]), "crashed": crashed}
        found.append(result)
    return {
        "seconds_lost": round(statistics.median(t["poisoned"]["seconds"] - t["clean"]["seconds"] for t in found), 2),
        "longest_wait_seconds": {name: round(max(t[name]["longest"] for t in found), 2) for name in found[0]},
        "decode_crash_positions": [t["poisoned"]["crashed"] for t in found],
    }


def _end(streams: OpenStreams) -> None:
    for actor in streams.segments:
        ray.kill(actor)


QUESTIONS = {"splits": splits, "costs": costs, "poison": poison}
SETTINGS = {"splits": TINY, "costs": ["data.row_size=64"], "poison": TINY}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample"
    parser.add_argument("--data", default=str(sample))
    parser.add_argument("--question", choices=QUESTIONS, default="splits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_index(expand([options.data]), folder / "index")
        if options.question == "poison":
            (folder / "sitecustomize.py").write_text(DEADLY_DECODER)  # imported at start-up by every Python process of Ray
            os.environ |= {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}", "POISON": str(folder / "poison")}
        config = load(None, [*SETTINGS[options.question], *options.overrides])
        with session.connected(config):
            answer = QUESTIONS[options.question](RowJob(config, str(folder / "index")), options.rounds)
    print(json.dumps({"cores": os.cpu_count(), "rounds": options.rounds} | answer))


if __name__ == "__main__":
    main()
