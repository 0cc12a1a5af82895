"""Segments: one stream's rows as a chain of short Ray Data datasets, each split over the ranks in row order.

Each block holds one row and block order is preserved, so `streaming_split` sends block i of a segment to split i mod n.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa
import ray
import ray.data

from swav_platform.config import Config
from swav_platform.data.outages import Outages
from swav_platform.data.samples import Killers
from swav_platform.failures import LONGEST_PAUSE, Wait
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import RowLayout

T = TypeVar("T")

_FORGOTTEN = 3 * LONGEST_PAUSE + 30.0  # seconds after which a wait that was not told again no longer counts


@dataclass(frozen=True)
class StreamSplit:
    """Assigns the rows of one stream to ranks.

    Stream s carries the rows k of [first, last) with k mod `streams` = s. Rank r takes those with (k - first) mod `ranks` = r.
    """

    stream: int
    streams: int
    first: int
    last: int
    ranks: int
    segment_rows: int  # upper bound; counts the rows of all streams together

    @property
    def first_row(self) -> int:
        """First row of this stream."""
        return self.first + (self.stream - self.first) % self.streams

    @property
    def consumers(self) -> list[int]:
        """Ranks in the order in which they take this stream's rows, repeated round robin."""
        count = self.ranks // math.gcd(self.ranks, self.streams)
        return [(self.first_row - self.first + i * self.streams) % self.ranks for i in range(count)]

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Half-open row ranges of the segments.

        Each but the last has a multiple of the consumers, so that the round robin continues across segments.
        """
        if self.first_row >= self.last:
            return []
        consumers = len(self.consumers)
        length = max(1, self.segment_rows // consumers) * consumers * self.streams
        return [(a, min(a + length, self.last)) for a in range(self.first_row, self.last, length)]


class SchedulerThrottle:
    """Execution callback that sleeps in each iteration of Ray Data's scheduling loop.

    The loop does not block while finished rows wait for a consumer; without a pause it keeps one core busy. An iteration costs
    the same for one row as for many. Tasks may therefore run a few rows ahead of the loop (`_buffered_blocks`), and each stream
    has one spare task, which works until the loop notices that another task has finished (`task_resources`).
    """

    SECONDS = 0.2

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(self.SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


@ray.remote(num_cpus=0, concurrency_groups={"attempts": 1})  # type: ignore[call-overload]
class Segments:
    """Actor of one stream: creates segments on demand, hands each rank its split and counts the attempts at each chunk.

    Ray retries a task whose worker died without limit and without a message. The actor outlives the workers, so it counts
    the attempts. From the second attempt on, a chunk's rows are made in child processes, which identify the fatal samples.
    """

    def __init__(self, job: RowJob, split: StreamSplit) -> None:
        self._job, self._split = job, split
        self._iterators: dict[int, list[ray.data.DataIterator]] = {}
        self._attempts: Counter[int] = Counter()
        self._killers = dict(job.killers)
        self._gone: dict[str, str] = {}  # shards that are gone for good, with the reason
        self._waits: dict[int, tuple[float, Wait]] = {}  # of data tasks for storages, by chunk, and when each was reported

    def iterator(self, segment: int, output: int) -> ray.data.DataIterator:
        """The iterator of split `output` of a segment; the first call for a segment creates its dataset."""
        if segment not in self._iterators:
            self._iterators.pop(segment - 2, None)  # ranks are at most one segment apart
            this = ray.get_runtime_context().current_actor
            created = dataset(self._job, self._split, *self._split.segments[segment], this)
            self._iterators[segment] = created.streaming_split(len(self._split.consumers), equal=False)
        return self._iterators[segment][output]

    @ray.method(concurrency_group="attempts")
    def start_chunk(self, first: int) -> tuple[int, Killers, dict[str, str]]:
        """Called by a data task that starts the chunk at row `first`. Returns the attempt's number, from 1, known killers and shards
        that are gone."""
        self._attempts[first] += 1
        return self._attempts[first], self._killers, self._gone

    @ray.method(concurrency_group="attempts")
    def add_killers(self, found: Killers) -> None:
        self._killers |= found

    @ray.method(concurrency_group="attempts")
    def add_gone(self, shards: dict[str, str]) -> None:
        self._gone |= shards

    @ray.method(concurrency_group="attempts")
    def tell_wait(self, chunk: int, wait: Wait | None) -> None:
        """Called by a data task that waits for a storage, and with None when it goes on."""
        if wait is None:
            self._waits.pop(chunk, None)
        else:
            self._waits[chunk] = time.monotonic(), wait

    @ray.method(concurrency_group="attempts")
    def longest_wait(self) -> Wait | None:
        """The longest wait of a data task now. A task that has told nothing for long is gone."""
        now = time.monotonic()
        self._waits = {chunk: told for chunk, told in self._waits.items() if now - told[0] < _FORGOTTEN}
        waits = [replace(wait, seconds=wait.seconds + now - told) for told, wait in self._waits.values()]
        return max(waits, key=lambda wait: wait.seconds, default=None)


def dataset(job: RowJob, split: StreamSplit, first: int, last: int, segments: Any) -> ray.data.Dataset:
    """One segment, lazy. segments: handle of the stream's `Segments` actor."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # byte: each row that a task yields becomes a block of its own
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True  # a UserError of a data task must reach the user
    context.memory_usage_poll_interval_s = None  # polling the memory maps of data tasks each second is expensive and unused
    context.custom_execution_callback_classes = [SchedulerThrottle]  # type: ignore[list-item]
    context._max_num_blocks_in_streaming_gen_buffer = _buffered_blocks(job.config)  # a task with so many waits
    work = [{"chunks": [[c.start, c.stop] for c in chunks]} for chunks in grouped_chunks(job, split.stream, first, last)]
    tasks, cpus = task_resources(_tasks(job), split.streams)
    return ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        _make_tables,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"job": job, "segments": segments},
        num_cpus=cpus,
        compute=ray.data.TaskPoolStrategy(size=tasks),
        label_selector=job.config.data.node_labels or None,
    )


def grouped_chunks(job: RowJob, stream: int, first: int, last: int) -> list[list[range]]:
    """The stream's chunks of rows first … last-1, grouped by data task.

    A chunk never crosses an epoch, so small data sets have short ones. A group has at most one window of positions, and
    groups are small enough for at least four rounds of tasks.
    """
    data, chunks = job.config.data, job.plan().chunks(stream, first, last)
    groups_wanted = 4 * _concurrent_tasks(_tasks(job), data.streams)
    limit = min(data.block * data.window // data.row_size, sum(map(len, chunks)) // groups_wanted)
    groups = list[list[range]]()
    for chunk in chunks:
        if groups and sum(map(len, groups[-1])) + len(chunk) <= limit:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return groups


def _tasks(job: RowJob) -> int:
    tasks = job.config.data.tasks
    assert isinstance(tasks, int), "the driver replaces `auto` by a number"
    return tasks


def task_resources(tasks: int, streams: int) -> tuple[int, float]:
    """Data tasks of one stream, one of them spare, and the CPUs that each requests.

    Two segments of each stream overlap. If the tasks of the next segment could hold every data CPU while consumers still wait
    for the current one, both would deadlock. All tasks of two segments of all streams therefore fit into `tasks` CPUs.
    """
    each = _concurrent_tasks(tasks, streams) + 1
    return each, math.floor(tasks / (each * streams * 2) * 1e4) / 1e4  # Ray rounds to the nearest 1/10,000


def _concurrent_tasks(tasks: int, streams: int) -> int:
    """Data tasks of one stream that have a core each."""
    return -(-tasks // streams)


def _buffered_blocks(config: Config) -> int:
    """Rows that a task may make before the scheduling loop takes them: 64 MiB, at least 2 and at most 32 rows."""
    return min(max(2**26 // RowLayout.of(config).nbytes, 2), 32)


def _make_tables(work: pa.Table, job: RowJob, segments: Any) -> Iterator[pa.Table]:
    from swav_platform.rows.produce import isolated_tables, tables  # imports decoders, which the scheduling loop does not need

    for first, last in chain.from_iterable(work["chunks"].to_pylist()):
        numbers = range(first, last, job.config.data.streams)
        attempt, killers, gone = ray.get(segments.start_chunk.remote(first))
        outages = job.outages().telling(partial(segments.tell_wait.remote, first), dict(gone))
        if attempt == 1:
            yield from _noting(tables(job, numbers, killers, outages), outages, gone, segments)
            continue
        for table, found in _noting(isolated_tables(job, numbers, killers, outages), outages, gone, segments):
            if found:
                segments.add_killers.remote(found)
            yield table


def _noting(made: Iterator[T], outages: Outages, known: dict[str, str], segments: Any) -> Iterator[T]:
    """`made`, and tells other tasks which shards turn out to be gone, so that only one waits for them."""
    count = len(known)
    for each in made:
        if len(outages.gone) > count:
            count = len(outages.gone)
            segments.add_gone.remote(outages.gone)
        yield each
