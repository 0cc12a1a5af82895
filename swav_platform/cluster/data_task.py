"""What a data task does: the rows of one piece of the plan, from the bytes of their samples to Arrow tables."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from swav_platform.config import Config
from swav_platform.data.datasets import plan_of
from swav_platform.data.index import Index, IndexLine
from swav_platform.data.plan import RowSpec
from swav_platform.data.read import ReadFailure, read_samples
from swav_platform.data.streams import Streams
from swav_platform.images.guarded import Killers, make_row_guarded, spared
from swav_platform.images.row import Fetch, Row, from_table, make_row, to_table

HELD_BYTES = 128 * 2**20
"""Encoded images that a data task holds at one time: a window of camera photographs would be gigabytes."""


@dataclass(frozen=True)
class StreamJob:
    """All that a data task has to know. Small: it travels with every task. `killers`: known when the run was taken up."""

    config: Config
    index: str
    tasks: int
    killers: Killers = field(default_factory=dict)

    def plan(self) -> Streams:
        data = self.config.data
        return Streams(plan_of(_open_index(self.index), data, self.config.seed), data.streams)


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


def tables(job: StreamJob, numbers: Sequence[int], killers: Killers) -> Iterator[pa.Table]:
    """Rows of these numbers, best of one window, as tables of one line. Plain function: Ray calls it, and so do tests."""
    plan = job.plan()
    for spec, fetch in _with_bytes(job, plan, numbers):
        yield to_table(make_row(spec, spared(fetch, killers), plan.stand_in, job.config))


def guarded_tables(job: StreamJob, numbers: Sequence[int], killers: Killers) -> Iterator[tuple[pa.Table, Killers]]:
    """The same tables, each with the samples that were found to kill who decodes them. Slower; survives such samples."""
    plan, known = job.plan(), dict(killers)
    for spec, fetch in _with_bytes(job, plan, numbers):
        table, found = make_row_guarded(spec, fetch, plan.stand_in, job.config, known)
        known |= found
        yield table, found


def rows(job: StreamJob, first: int, last: int) -> Iterator[Row]:
    """Rows first … last-1, without Ray."""
    return map(from_table, tables(job, range(first, last), job.killers))


def _with_bytes(job: StreamJob, plan: Streams, numbers: Sequence[int]) -> Iterator[tuple[RowSpec, Fetch]]:
    index = _open_index(job.index)
    for specs in _held_together([plan.row(k) for k in numbers], index):
        samples = [n for spec in specs for n in spec.samples.tolist()]
        fetch = RowsReader(index, samples, job.config.data.images.max_bytes)
        for spec in specs:
            yield spec, fetch


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
