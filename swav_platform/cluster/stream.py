"""Streams rows through Ray Data from the plan to the ranks, in order and exactly once.

A run has one or more streams, and each stream is a chain of segments (`segments.py`). A rank takes its rows, those with
(k - cursor) mod N = r, from the streams in row order. The next segment starts while the current one is consumed: a dataset
takes seconds to start, and ranks must not wait between segments.
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

from swav_platform.cluster.segments import Segments, StreamSplit
from swav_platform.cluster.session import cluster_resources
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row, RowLayout
from swav_platform.rows.table import from_table

PREFETCH_BYTES, MAX_PREFETCH_ROWS = 256 * 2**20, 64
"""Rows that a rank prefetches: in bytes of the object store over all its streams, and in rows of one segment.

They bridge a delay of a second or two, for example while the next segment starts. Two segments overlap, so each has half of it.
"""

LEAD_SECONDS = 15.0
"""Seconds before the end of a segment at which the next one starts.

Not earlier, because two segments cost two scheduling loops and twice the memory. A rank first consumes a sixteenth of the
segment to measure its pace.
"""

_END = object()


@dataclass(frozen=True)
class OpenStreams:
    """The running streams of rows first … last-1. Picklable."""

    splits: tuple[StreamSplit, ...]
    segments: tuple[Any, ...]  # a `Segments` actor for each split
    prefetch: int  # rows of each segment that a rank holds ready besides the one in use


def open_streams(job: RowJob, first: int, last: int, ranks: int) -> OpenStreams:
    """Starts the streams. Called once for all ranks; the streams live as long as the calling process."""
    data = job.config.data
    splits = tuple(StreamSplit(s, data.streams, first, last, ranks, data.segment) for s in range(data.streams))
    segments = tuple(Segments.remote(job, split) for split in splits)  # type: ignore[attr-defined]
    prefetch = _prefetch_rows(RowLayout.of(job.config).nbytes, ranks, data.streams // math.gcd(ranks, data.streams))
    return OpenStreams(splits, segments, prefetch)


def _prefetch_rows(row_bytes: int, ranks: int, streams: int) -> int:
    """Rows of each of the `streams` that a rank consumes. All ranks together use at most a quarter of Ray's object stores."""
    stores = int(cluster_resources().get("object_store_memory", 4 * PREFETCH_BYTES * ranks))
    budget = min(PREFETCH_BYTES, stores // (4 * ranks))
    return min(max(budget // (2 * streams * row_bytes), 2), MAX_PREFETCH_ROWS)


def rank_rows(streams: OpenStreams, rank: int) -> Iterator[Row]:
    """This rank's rows, in row order. Stops early if a stream does; the training loop checks the row numbers."""
    mine = [(split, s) for split, s in zip(streams.splits, streams.segments, strict=True) if rank in split.consumers]
    rows = {split.stream: _stream_rows(split, segments, rank, streams.prefetch) for split, segments in mine}
    split = streams.splits[0]
    try:
        for number in range(split.first + rank, split.last, split.ranks):
            row = next(rows[number % split.streams], None)
            if row is None:
                return
            yield row
    finally:
        for stream in rows.values():
            stream.close()


class _SplitReader:
    """One rank's rows of one segment, prefetched by a thread."""

    def __init__(self, open_iterator: Callable[[], Any], prefetch: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=prefetch)
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


def _stream_rows(split: StreamSplit, actor: Any, rank: int, prefetch: int) -> Generator[Row, None, None]:
    """This rank's rows of all segments of one stream.

    Opens the first segment at once, not when its first row is taken. Ray Data's splitter waits until all consumers have opened
    a segment, so ranks that start with different streams would deadlock.
    """
    segments, output = split.segments, split.consumers.index(rank)

    def open_segment(number: int) -> _SplitReader | None:
        if number >= len(segments):
            return None
        return _SplitReader(lambda: ray.get(actor.iterator.remote(number, output)), prefetch)

    def rows(current: _SplitReader | None) -> Generator[Row, None, None]:
        following: _SplitReader | None = None
        try:
            for number, (first, last) in enumerate(segments):
                assert current is not None
                expected = -(-(last - first) // split.streams // len(split.consumers))
                started = time.monotonic()
                for taken, row in enumerate(current):
                    if taken == 0:
                        started = time.monotonic()  # excludes the segment's start from the pace
                    pace = (time.monotonic() - started) / max(taken, 1)
                    if following is None and taken >= max(expected // 16, 1) and (expected - taken) * pace <= LEAD_SECONDS:
                        following = open_segment(number + 1)
                    yield row
                current, following = following or open_segment(number + 1), None
        finally:
            for reader in (current, following):
                if reader is not None:
                    reader.stop()

    return rows(open_segment(0))
