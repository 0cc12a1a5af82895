"""Measures how fast rows reach the trainer, with two data tasks. --question chooses the measurement:

compare   The stream against a torch DataLoader and a tuned `ray.data.read_webdataset`, with the same decoding and crops.
streams   One stream against two, with tiny rows, and CPU milliseconds per row by process.
seams     The longest wait for a row where one segment follows another.
start     Seconds from opening the streams to the first row.

    python benchmarks/stream.py [--data PATTERN] [--question compare] [--rounds 3] [--rows 256]

A segment of `seams` must last longer than it takes to start: 3 s on a fast core, 8 s on a slow one. Use --rows 512 there.
Prints one JSON line. A ratio above 1 means that the platform is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from swav_platform.cluster import session
from swav_platform.cluster.stream import open_streams, rank_rows
from swav_platform.config import load
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.index.sources import expand
from swav_platform.data.order.plan import RowSpec
from swav_platform.rows.fetch import RowsReader
from swav_platform.rows.job import RowJob
from swav_platform.rows.make import make_row
from swav_platform.rows.table import from_table, to_table

TASKS = 2
MARGIN = 48  # rows: three blocks of 16, which three tasks may have made before the first is consumed

SETTINGS = {
    "compare": ["data.row_size=64"],  # the batch of one GPU
    "streams": ["views.large.size=16", "views.small.size=8", "views.small.count=2", "data.row_size=1"],
    "seams": ["data.row_size=4"],
}

Stream = Iterator[np.ndarray]  # packed rows, uint8 [nbytes]


def ours(job: RowJob, rows: int) -> Stream:
    streams = open_streams(job, 0, rows, 1)
    try:
        for number, row in enumerate(rank_rows(streams, 0)):
            assert row.row == number
            yield row.packed
    finally:
        _end(streams.segments)


def dataloader(job: RowJob, rows: int) -> Stream:
    """A map-style dataset of rows with two workers, which pass rows through shared memory."""
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(Rows(job, rows), batch_size=None, num_workers=TASKS, prefetch_factor=3)  # type: ignore[arg-type]
    for packed, _ in loader:
        yield packed.numpy()


class Rows:
    def __init__(self, job: RowJob, rows: int) -> None:
        self.job, self.rows, self.plan, self.index = job, rows, job.plan(), Index.open(job.index)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        import torch

        spec = self.plan.row(number)
        fetch = RowsReader(self.index, self.index.lines(spec.samples), self.job.config.data.images.max_bytes, self.job.outages())
        row = make_row(spec, fetch, self.plan.replacement, self.job.config)
        rest = (row.row, row.position, row.sample, row.outcome, row.weight, row.key, row.shard, row.stand_in_for, row.events)
        return torch.from_numpy(row.packed), rest


def webdataset(job: RowJob, rows: int) -> Stream:
    """Ray's reader of tars. The reading task also makes rows, so that no image is transferred twice."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    context.target_max_block_size = 128 * 2**20
    context.custom_execution_callback_classes = []
    index = Index.open(job.index)
    shards = [index.shards[number] for number in range(len(index.shards))]
    rows_of_all = sum(-(-shard.samples // job.config.data.row_size) for shard in shards)
    paths = [index.shards.url(number) for number in range(len(shards))] * (-(-rows // rows_of_all))
    read = ray.data.read_webdataset(paths, decoder=None, override_num_blocks=len(paths))
    made = read.map_batches(
        _rows_of_bytes,  # type: ignore[arg-type]
        batch_size=job.config.data.row_size,
        batch_format="numpy",
        fn_kwargs={"job": job},
        compute=ray.data.TaskPoolStrategy(size=TASKS),
    )
    tables: Any = made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    for table in tables:
        for i in range(table.num_rows):
            yield from_table(table.slice(i, 1)).packed


def _rows_of_bytes(batch: dict[str, Any], job: RowJob) -> Iterator[Any]:
    size = job.config.data.row_size
    images, keys = batch["jpg"], batch["__key__"]
    numbers = np.arange(size) % len(images)  # the last batch of a shard may be short
    spec = RowSpec(0, np.arange(size), numbers, np.zeros(size, bool))

    def fetch(wanted: Any) -> dict[int, tuple[IndexLine, bytes]]:
        return {int(n): (IndexLine(int(n), keys[n], "", 0, 0, "jpg", None), bytes(images[n])) for n in wanted}

    row = make_row(spec, fetch, lambda position, attempt: int(numbers[(position + attempt) % size]), job.config)
    yield to_table(row)


def _end(actors: Any) -> None:
    import ray

    for actor in actors:
        ray.kill(actor)


def rate(stream: Stream) -> dict[str, float]:
    """Rows per second without the first and last `MARGIN` rows, rows per second of all with the start, and seconds to the first.

    All workers are busy during the timed rows, and equally many finished rows wait at the beginning and at the end.
    """
    began = time.perf_counter()
    place = None
    came = []
    for packed in stream:
        place = np.empty_like(packed) if place is None else place
        np.copyto(place, packed)  # like a copy to pinned memory
        came.append(time.perf_counter())
    time.sleep(1)  # until Ray has released the CPUs
    steady = came[MARGIN - 1 : len(came) - MARGIN]
    return {
        "rows": (len(steady) - 1) / (steady[-1] - steady[0]),
        "with_start": len(came) / (came[-1] - began),
        "first": came[0] - began,
    }


def wait_share(stream: Stream, work: float) -> float:
    """Share of time that a consumer waits if it works `work` seconds on each row, after the first `MARGIN` rows."""
    for _ in range(MARGIN):
        next(stream)
        time.sleep(work)
    began, waited = time.perf_counter(), 0.0
    while True:
        time.sleep(work)
        before = time.perf_counter()
        if next(stream, None) is None:
            return waited / (before - began)
        waited += time.perf_counter() - before


def compare(job: RowJob, rounds: int, rows: int) -> dict[str, Any]:
    ways = {"ours": ours, "dataloader": dataloader, "read_webdataset": webdataset}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(rate(way(job, rows + 2 * MARGIN)))

    def against(other: str, what: str) -> list[float]:
        return [round(a[what] / b[what], 3) for a, b in zip(found["ours"], found[other], strict=True)]

    def medians(what: str) -> dict[str, float]:
        return {name: round(statistics.median(run[what] for run in runs), 2) for name, runs in found.items()}

    return {
        "vs_dataloader": statistics.median(against("dataloader", "rows")),
        "vs_read_webdataset": statistics.median(against("read_webdataset", "rows")),
        "vs_dataloader_with_start": statistics.median(against("dataloader", "with_start")),
        "vs_read_webdataset_with_start": statistics.median(against("read_webdataset", "with_start")),
        "pairs": against("dataloader", "rows"),
        "rows_per_second": medians("rows"),
        "first_row_seconds": medians("first"),
        "consumer_wait_share": round(wait_share(ours(job, rows // 2 + MARGIN), 1.25 / medians("rows")["ours"]), 4),
    }


def cpu_by_process() -> dict[str, float]:
    """CPU seconds so far of this process and its descendants, by their role."""
    spent: dict[str, float] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            line, times = " ".join(process.cmdline()), process.cpu_times()
            kind = next((kind for word, kind in KINDS if word in line), "rest of Ray")
            spent[kind] = spent.get(kind, 0) + times.user + times.system
    return spent


KINDS = [
    ("ray::SplitCoordinator", "scheduling loop"),
    ("ray::MapBatches", "data tasks"),
    ("ray::IDLE", "data tasks"),
    ("ray::Segments", "Segments"),
    ("raylet", "raylet"),
    ("benchmarks/stream.py", "consumer"),
]


def streams(job: RowJob, rounds: int, rows: int) -> dict[str, Any]:
    """Rows per second and CPU milliseconds per row, with one stream and with two."""
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(rounds):
        for count in found:
            data = job.config.data.model_copy(update={"streams": count})
            stream = ours(replace(job, config=job.config.model_copy(update={"data": data})), rows)
            next(stream)
            before, began = cpu_by_process(), time.perf_counter()
            for _, place in zip(range(rows - 2), stream, strict=False):
                del place
            seconds, after = time.perf_counter() - began, cpu_by_process()
            stream.close()  # type: ignore[attr-defined]
            spent = {kind: 1000 * (after[kind] - before.get(kind, 0)) / (rows - 2) for kind in after}
            found[count].append({"rows": (rows - 2) / seconds, "cpu": spent})
            time.sleep(1)
    return {
        "two_streams_vs_one": round(statistics.median(b["rows"] / a["rows"] for a, b in zip(*found.values(), strict=True)), 3),
        "rows_per_second": {n: round(statistics.median(run["rows"] for run in runs), 1) for n, runs in found.items()},
        "cpu_ms_per_row": {n: {kind: round(ms, 2) for kind, ms in runs[-1]["cpu"].items()} for n, runs in found.items()},
    }


def seconds_of_a_row(job: RowJob) -> float:
    """CPU seconds per row, after the kernels are loaded."""
    rows = Rows(job, 65)
    rows[0]
    began = time.process_time()
    for number in range(1, 65):
        rows[number]
    return (time.process_time() - began) / 64


def seams(job: RowJob, rounds: int, rows: int) -> dict[str, Any]:
    """Waits of two synchronised ranks over 21 segments, at the pace at which half a core makes rows."""
    ranks, changes = 2, 20
    pace = 2 * seconds_of_a_row(job)
    job = replace(job, config=job.config.model_copy(update={"data": job.config.data.model_copy(update={"segment": rows})}))
    streams = open_streams(job, 0, (changes + 1) * rows, ranks)
    waits: list[list[float]] = [[] for _ in range(ranks)]
    together = threading.Barrier(ranks)  # as in training

    def consume(rank: int) -> None:
        stream = rank_rows(streams, rank)
        while True:
            before = time.perf_counter()
            if next(stream, None) is None:
                return
            waits[rank].append(time.perf_counter() - before)
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(60)
            time.sleep(ranks * pace)

    threads = [threading.Thread(target=consume, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _end(streams.segments)
    share = rows // ranks
    at_seams = [[max(w[c * share - 1 : c * share + 2]) for c in range(1, changes + 1)] for w in waits]
    medians = [statistics.median(w[1:]) for w in waits]
    return {
        "longest_wait_at_a_seam_ms": round(1000 * max(map(max, at_seams)), 1),
        "longest_wait_ms": round(1000 * max(max(w[2:]) for w in waits), 1),
        "median_wait_ms": [round(1000 * m, 2) for m in medians],
        "within_bound": all(max(w) <= 1.5 * m + 0.05 for w, m in zip(at_seams, medians, strict=True)),
        "changes": changes,
        "rows_per_segment": rows,
        "seconds_per_segment": round(rows * pace, 1),
    }


def start(job: RowJob, rounds: int, rows: int) -> dict[str, Any]:
    """Seconds from opening the streams to the first row, with Ray already running."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        stream = ours(job, rows)
        next(stream)
        found.append(time.perf_counter() - began)
        stream.close()  # type: ignore[attr-defined]
        time.sleep(1)
    return {"first_row_seconds": round(statistics.median(found), 2), "all": [round(s, 2) for s in found]}


QUESTIONS = {"compare": compare, "streams": streams, "seams": seams, "start": start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet-sample"
    parser.add_argument("--data", default=str(sample))
    parser.add_argument("--question", choices=QUESTIONS, default="compare")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rows", type=int, default=256, help="number of timed rows, or rows per segment for seams (default: 256)"
    )
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_index(expand([options.data]), Path(folder))
        config = load(None, [*SETTINGS.get(options.question, []), *options.overrides])
        job = RowJob(config, folder)
        with session.connected(config):
            answer = QUESTIONS[options.question](job, options.rounds, options.rows)
    print(json.dumps(answer | {"cores": os.cpu_count(), "rounds": options.rounds}))


if __name__ == "__main__":
    main()
