"""Rows through stock Ray Data: plan -> data tasks -> ranks, in order, exactly once.

A run is a chain of short data sets ("segments"). Each is split over the ranks so that block i goes to rank
i mod N; with one row in each block and order preserved, rank r gets exactly the rows k with
(k - cursor) mod N = r. The next segment is started while the last three quarters of the current one are
consumed, because a data set needs seconds to start and no rank should wait at a seam.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data

from swav_platform.config import Config
from swav_platform.data.datasets import plan_of
from swav_platform.data.index import Index, IndexLine
from swav_platform.data.mix import MixedPlan
from swav_platform.data.plan import Plan, RowSpec
from swav_platform.data.read import ReadFailure, read_samples
from swav_platform.images.row import Row, from_table, make_row, to_table

# Two segments overlap at each seam. If the tasks of the next one could hold every data CPU while its consumer
# still waits for the current one, both would stand still; at half a CPU each, all tasks of both always fit.
TASK_CPUS = 0.5

HELD_BYTES = 128 * 2**20
"""Encoded images that a data task holds at one time: a window of camera photographs would be gigabytes."""


@dataclass(frozen=True)
class StreamJob:
    """All that a data task has to know. Small: it travels with every task."""

    config: Config
    index: str
    samples: int
    tasks: int

    def plan(self) -> Plan | MixedPlan:
        return plan_of(_open_index(self.index), self.config.data, self.config.seed)


class RowsReader:
    """Bytes of the samples of some rows of one window: read once, in runs, and held until the rows are made."""

    def __init__(self, index: Index, numbers: Sequence[int], max_bytes: int) -> None:
        self._index, self._max_bytes = index, max_bytes
        self._pending: Sequence[int] = numbers
        self._held: dict[int, tuple[IndexLine, bytes | ReadFailure]] = {}

    def __call__(self, numbers: Sequence[int]) -> dict[int, tuple[IndexLine, bytes | ReadFailure]]:
        wanted = {int(n) for n in itertools.chain(self._pending, numbers)} - self._held.keys()
        self._pending = ()
        if wanted:
            lines = self._index.lines(sorted(wanted))
            contents = read_samples(lines, max_bytes=self._max_bytes)
            self._held.update((line.number, (line, contents[line.number])) for line in lines)
        return {int(n): self._held[int(n)] for n in numbers}


def rows(job: StreamJob, first: int, last: int) -> Iterator[Row]:
    """Rows first … last-1, which lie in one window of the plan. Plain function: Ray calls it, and so do tests."""
    plan, index = job.plan(), _open_index(job.index)
    for specs in _held_together([plan.row(k) for k in range(first, last)], index):
        numbers = [n for spec in specs for n in spec.samples.tolist()]
        fetch = RowsReader(index, numbers, job.config.data.images.max_bytes)
        for spec in specs:
            yield make_row(spec, fetch, plan.stand_in, job.config)


def _held_together(specs: Sequence[RowSpec], index: Index) -> Iterator[list[RowSpec]]:
    """Rows one after the other whose images have HELD_BYTES or less together; a row alone may have more."""
    group: list[RowSpec] = []
    held = 0
    for spec in specs:
        size = sum(line.size for line in index.lines(spec.samples))
        if group and held + size > HELD_BYTES:
            yield group
            group, held = [], 0
        group.append(spec)
        held += size
    yield group


@functools.lru_cache(maxsize=2)
def _open_index(path: str) -> Index:
    return Index.open(path)


def _make_rows(chunk: pa.Table, job: StreamJob) -> Iterator[pa.Table]:
    for first, last in zip(chunk["first"].to_pylist(), chunk["last"].to_pylist(), strict=True):
        for row in rows(job, first, last):
            yield to_table(row)


class Pause:
    """Ray Data's scheduling loop does not wait while rows stand ready that nobody takes yet: unpaused, it keeps a core busy."""

    SECONDS = 0.02

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(self.SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


def _dataset(job: StreamJob, first: int, last: int) -> ray.data.Dataset:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # each row that a task yields is a block of its own
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [Pause]  # type: ignore[list-item]
    chunks = [{"first": a, "last": b} for a, b in job.plan().chunks(first, last)]
    return ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        _make_rows,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"job": job},
        num_cpus=TASK_CPUS,
        compute=ray.data.TaskPoolStrategy(size=job.tasks),
    )


@ray.remote(num_cpus=0)
class Segments:
    """Makes the segments of the chain as they are asked for and hands each rank its share."""

    def __init__(self, job: StreamJob, first: int, last: int, ranks: int) -> None:
        self._job, self._ranks = job, ranks
        self._bounds = segment_bounds(first, last, job.config.data.segment, ranks)
        self._splits: dict[int, list[ray.data.DataIterator]] = {}

    def share(self, number: int, rank: int) -> ray.data.DataIterator:
        if number not in self._splits:
            self._splits.pop(number - 2, None)  # ranks are at most one segment apart
            dataset = _dataset(self._job, *self._bounds[number])
            self._splits[number] = dataset.streaming_split(self._ranks, equal=False)
        return self._splits[number][rank]


def segment_bounds(first: int, last: int, length: int, ranks: int) -> list[tuple[int, int]]:
    """Half-open row ranges. Each but the last is a multiple of the ranks, so that the round robin goes on over a seam."""
    length = max(1, length // ranks) * ranks
    return [(a, min(a + length, last)) for a in range(first, last, length)]


_END = object()


class _Share:
    """One rank's rows of one segment, fetched ahead by a thread."""

    def __init__(self, open_iterator: Callable[[], Any], ahead: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        self._open = open_iterator
        self._stopped = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            batches = self._open().iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
            for table in batches:
                self._put(from_table(table))
                if self._stopped.is_set():
                    return
            self._put(_END)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[Row]:
        while (item := self._queue.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        self._stopped.set()


def rank_rows(segments: Any, bounds: Sequence[tuple[int, int]], rank: int, ranks: int, *, ahead: int = 2) -> Iterator[Row]:
    """This rank's rows of all segments, in row order.

    segments: handle of a `Segments` actor. ahead: rows held ready beside the one in use.
    """

    def start(number: int) -> _Share | None:
        if number >= len(bounds):
            return None
        return _Share(lambda: ray.get(segments.share.remote(number, rank)), ahead)

    current = start(0)
    following: _Share | None = None
    try:
        for number, (first, last) in enumerate(bounds):
            assert current is not None
            quarter = (last - first) // ranks // 4
            for taken, row in enumerate(current):
                if taken == quarter:
                    following = start(number + 1)
                yield row
            current = following or start(number + 1)
            following = None
    finally:
        for share in (current, following):
            if share is not None:
                share.stop()
