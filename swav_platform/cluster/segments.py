"""One stream's rows as a chain of short data sets ("segments") of stock Ray Data, each split over the ranks in row order.

With one row in each block and order preserved, Ray Data's splitter deals block i of a segment to output i mod outputs.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import ray
import ray.data

from swav_platform.config import Config
from swav_platform.data.samples import Killers
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import RowLayout


@dataclass(frozen=True)
class Course:
    """Which rows of first … last-1 one stream carries, and which ranks take them. Arithmetic of k mod L and (k - first) mod N."""

    stream: int
    streams: int
    first: int
    last: int
    ranks: int
    segment: int  # rows

    @property
    def start(self) -> int:
        """The stream's first row."""
        return self.first + (self.stream - self.first) % self.streams

    @property
    def takers(self) -> list[int]:
        """Ranks in the order in which they take the stream's rows, again and again."""
        turns = self.ranks // math.gcd(self.ranks, self.streams)
        return [(self.start - self.first + i * self.streams) % self.ranks for i in range(turns)]

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Half-open row ranges of the segments. Each but the last has a multiple of the takers: the round robin goes on over a seam."""
        if self.start >= self.last:
            return []
        length = max(1, self.segment // len(self.takers)) * len(self.takers) * self.streams
        return [(a, min(a + length, self.last)) for a in range(self.start, self.last, length)]


class Pause:
    """Ray Data's scheduling loop does not wait while rows stand ready that nobody takes yet: unpaused, it keeps a core busy.

    A step costs it the same for one row or many. So tasks may be some rows ahead of it (`_unseen`), and there is one to spare, which
    works on while the loop has yet to see that another has ended (`task_share`).
    """

    SECONDS = 0.2

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(self.SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


@ray.remote(num_cpus=0, concurrency_groups={"attempts": 1})  # type: ignore[call-overload]
class Segments:
    """Makes the segments of one stream as they are asked for, hands each rank its share, and counts the attempts at each piece.

    Ray starts a task whose worker died again, for ever and without a word. So attempts are counted here, outside of the
    worker: from the second one on a piece's rows are made in child processes, which finds the samples that kill.
    """

    def __init__(self, job: RowJob, course: Course) -> None:
        self._job, self._course = job, course
        self._splits: dict[int, list[ray.data.DataIterator]] = {}
        self._begun: Counter[int] = Counter()
        self._killers = dict(job.killers)

    def share(self, number: int, output: int) -> ray.data.DataIterator:
        if number not in self._splits:
            self._splits.pop(number - 2, None)  # ranks are at most one segment apart
            this = ray.get_runtime_context().current_actor
            made = dataset(self._job, self._course, *self._course.bounds[number], this)
            self._splits[number] = made.streaming_split(len(self._course.takers), equal=False)
        return self._splits[number][output]

    @ray.method(concurrency_group="attempts")
    def begin(self, first: int) -> tuple[int, Killers]:
        """A data task begins the piece whose first row is `first`: how often that has been so, and the killers known."""
        self._begun[first] += 1
        return self._begun[first], self._killers

    @ray.method(concurrency_group="attempts")
    def killed(self, by: Killers) -> None:
        self._killers |= by


def dataset(job: RowJob, course: Course, first: int, last: int, segments: Any) -> ray.data.Dataset:
    """One segment, lazy."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # each row that a task yields is a block of its own
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True  # a data task's UserError is to reach the user
    context.memory_usage_poll_interval_s = None  # reading the memory maps of data tasks each second costs them, and nobody asks
    context.custom_execution_callback_classes = [Pause]  # type: ignore[list-item]
    context._max_num_blocks_in_streaming_gen_buffer = _unseen(job.config)  # a task waits when it has made so many
    work = [{"pieces": [[p.start, p.stop] for p in pieces]} for pieces in shared_out(job, course.stream, first, last)]
    tasks, cpus = task_share(job.config.data.tasks, course.streams)
    return ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        _make_tables,  # type: ignore[arg-type]
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"job": job, "segments": segments},
        num_cpus=cpus,
        compute=ray.data.TaskPoolStrategy(size=tasks),
        label_selector=job.config.data.node_labels or None,
    )


def shared_out(job: RowJob, stream: int, first: int, last: int) -> list[list[range]]:
    """The stream's pieces of rows first … last-1, short ones together: none crosses an epoch, so of few images each is soon over.

    Together they are at most a window of positions, and not so many that tasks would have less than four turns each.
    """
    data, pieces = job.config.data, job.plan().chunks(stream, first, last)
    turns = 4 * _at_work(data.tasks, data.streams)
    most = min(data.block * data.window // data.row_size, sum(map(len, pieces)) // turns)
    found = list[list[range]]()
    for piece in pieces:
        if found and sum(map(len, found[-1])) + len(piece) <= most:
            found[-1].append(piece)
        else:
            found.append([piece])
    return found


def task_share(tasks: int, streams: int) -> tuple[int, float]:
    """Data tasks of one stream, one of them to spare, and CPUs of each.

    Two segments of each stream overlap at a seam. If the tasks of the next one could hold every data CPU while its consumers still
    wait for the current one, both would stand still; so all tasks of two segments of all streams fit into `tasks` CPUs.
    """
    each = _at_work(tasks, streams) + 1
    return each, math.floor(tasks / (each * streams * 2) * 1e4) / 1e4  # Ray rounds to the nearest of these


def _at_work(tasks: int, streams: int) -> int:
    """Data tasks of one stream that have cores."""
    return -(-tasks // streams)


def _unseen(config: Config) -> int:
    """Rows that a task may have made before the scheduling loop looks: 64 MiB, but at least two and at most 32."""
    return min(max(2**26 // RowLayout.of(config).nbytes, 2), 32)


def _make_tables(work: pa.Table, job: RowJob, segments: Any) -> Iterator[pa.Table]:
    from swav_platform.rows.produce import guarded_tables, tables  # decoders: the scheduling loop has no use for them

    for first, last in chain.from_iterable(work["pieces"].to_pylist()):
        numbers = range(first, last, job.config.data.streams)
        attempt, killers = ray.get(segments.begin.remote(first))
        if attempt == 1:
            yield from tables(job, numbers, killers)
            continue
        for table, found in guarded_tables(job, numbers, killers):
            if found:
                segments.killed.remote(found)
            yield table
