"""Rows through stock Ray Data: plan -> data tasks -> ranks, in order, exactly once.

A run has one pipeline for each stream of its plan, and each pipeline is a chain of short data sets (`segments.py`). A rank takes
its rows, those with (k - cursor) mod N = r, from the pipelines in row order. The next segment is started while the current one is
consumed, because a data set needs seconds to start and no rank should wait at a seam.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from swav_platform.cluster.segments import Course, Segments
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row, RowLayout
from swav_platform.rows.table import from_table

AHEAD, MOST_AHEAD = 256 * 2**20, 64
"""Bytes of rows that a rank may hold ready, where Ray keeps them, and how many rows at most of a stream: what a second or two of a
busy machine may keep back, as while the next segment starts. At a seam there are two segments, so each has half of it."""


@dataclass(frozen=True)
class Pipelines:
    """The running streams of rows first … last-1. Can be sent to other processes."""

    courses: tuple[Course, ...]
    segments: tuple[Any, ...]  # an actor for each course
    ahead: int  # rows of each segment that a rank holds ready beside the one in use


def open_pipelines(job: RowJob, first: int, last: int, ranks: int) -> Pipelines:
    """Called once for all ranks; the pipelines live as long as the process that called."""
    data = job.config.data
    courses = tuple(Course(s, data.streams, first, last, ranks, data.segment) for s in range(data.streams))
    segments = tuple(Segments.remote(job, course) for course in courses)  # type: ignore[attr-defined]
    return Pipelines(
        courses, segments, _ahead(RowLayout.of(job.config).nbytes, ranks, data.streams // math.gcd(ranks, data.streams))
    )


def _ahead(row_bytes: int, ranks: int, streams: int) -> int:
    """Rows of each of the `streams` that a rank takes from; all ranks together hold at most a quarter of Ray's object stores."""
    stores = int(ray.cluster_resources().get("object_store_memory", 4 * AHEAD * ranks))
    room = min(AHEAD, stores // (4 * ranks))
    return min(max(room // (2 * streams * row_bytes), 2), MOST_AHEAD)


def rank_rows(pipelines: Pipelines, rank: int) -> Iterator[Row]:
    """This rank's rows, in row order."""
    mine = [(c, s) for c, s in zip(pipelines.courses, pipelines.segments, strict=True) if rank in c.takers]
    rows = {course.stream: _stream_rows(course, segments, rank, pipelines.ahead) for course, segments in mine}
    course = pipelines.courses[0]
    try:
        for number in range(course.first + rank, course.last, course.ranks):
            row = next(rows[number % course.streams], None)
            if row is None:
                return  # too early: whoever counts rows will tell
            yield row
    finally:
        for stream in rows.values():
            stream.close()


LEAD = 15.0
"""Seconds before the end of a segment at which the next one is started. Not earlier, because two at a time cost two scheduling loops
and the memory of two; and not before a sixteenth of it has told its pace."""

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


def _stream_rows(course: Course, segments: Any, rank: int, ahead: int) -> Generator[Row, None, None]:
    """This rank's rows of all segments of one stream.

    The first share is opened at once, not with the first row taken: Ray Data's splitter waits until all takers of a segment have
    opened theirs, and ranks that first wait for different streams would wait for each other.
    """
    bounds, output = course.bounds, course.takers.index(rank)

    def start(number: int) -> _Share | None:
        if number >= len(bounds):
            return None
        return _Share(lambda: ray.get(segments.share.remote(number, output)), ahead)

    def rows(current: _Share | None) -> Generator[Row, None, None]:
        following: _Share | None = None
        try:
            for number, (first, last) in enumerate(bounds):
                assert current is not None
                rows_here = -(-(last - first) // course.streams // len(course.takers))
                began = time.monotonic()
                for taken, row in enumerate(current):
                    if taken == 0:
                        began = time.monotonic()  # before it, the segment started
                    pace = (time.monotonic() - began) / max(taken, 1)
                    if following is None and taken >= max(rows_here // 16, 1) and (rows_here - taken) * pace <= LEAD:
                        following = start(number + 1)
                    yield row
                current, following = following or start(number + 1), None
        finally:
            for share in (current, following):
                if share is not None:
                    share.stop()

    return rows(start(0))
