"""What the stream's promises cost, and whether they hold. One question of three, by --question:

splits    every position exactly once, for 1, 2, 3 streams with 1 … 4 ranks, in one Ray; an epoch each
costs     share of the rate that order costs, and that the checks cost
poison    seconds for which a sample that kills its worker every time holds up the stream

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
    from swav_platform.images import row

    def fatal(data, *rest, decode=row.decode_reduced):
        with open(os.environ["POISON"]) as poison:
            if hashlib.md5(data).hexdigest() == poison.read():
                os.kill(os.getpid(), signal.SIGKILL)
        return decode(data, *rest)

    row.decode_reduced = fatal

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
    """Rows of an epoch: positions taken, doubled and missing, samples that nobody saw, ranks with rows not theirs or out of order."""
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
    told = {
        "positions": len(positions),
        "doubled": len(positions) - len(np.unique(positions)),
        "missing": rows * size - len(np.unique(positions)),
        "samples_unseen": plan.plan.spec.samples - len(seen),
        "ranks_astray": sum([row.row for row in mine] != list(range(rank, rows, ranks)) for rank, mine in enumerate(taken)),
    }
    right = told["positions"] == rows * size and not any(
        told[name] for name in ("doubled", "missing", "samples_unseen", "ranks_astray")
    )
    return told | {"seconds": round(time.perf_counter() - began, 1), "ok": right}


def costs(job: RowJob, rounds: int) -> dict[str, Any]:
    """Order: one data set with it and without. Checks: a row's number compared, and a piece's attempts counted by the actor."""
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
    comparing = timeit.timeit(lambda: row is None or row.row != 0, number=10_000) / 10_000  # as the training loop does
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
    time.sleep(1)  # what has ended lets go of its CPUs
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
    """The same rows without and with the sample that kills: what becomes of it, and the longest wait for a row in both."""
    rows, found = 96, []
    [victim] = job.plan().row(rows // 2).samples[:1].tolist()
    [content] = read_samples(open_index(job.index).lines([victim])).values()
    assert isinstance(content, bytes)
    for _ in range(rounds):
        told = {}
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
            told[name] = {"seconds": sum(waits), "longest": max(waits[1:]), "crashed": crashed}
        found.append(told)
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
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample"
    parser.add_argument("--data", default=str(beside))
    parser.add_argument("--question", choices=QUESTIONS, default="splits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_index(expand([options.data]), folder / "index")
        if options.question == "poison":
            (folder / "sitecustomize.py").write_text(DEADLY_DECODER)  # Python imports it in every process of Ray
            os.environ |= {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}", "POISON": str(folder / "poison")}
        config = load(None, [*SETTINGS[options.question], *options.overrides])
        with session.connected(config):
            answer = QUESTIONS[options.question](RowJob(config, str(folder / "index")), options.rounds)
    print(json.dumps({"cores": os.cpu_count(), "rounds": options.rounds} | answer))


if __name__ == "__main__":
    main()
