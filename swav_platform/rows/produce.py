"""What a data task does: the rows of a piece of the plan, from the bytes of their samples to Arrow tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.order.plan import RowSpec
from swav_platform.data.order.streams import Streams
from swav_platform.data.samples import Killers
from swav_platform.rows.fetch import RowsReader
from swav_platform.rows.isolation import make_row_guarded, spared
from swav_platform.rows.job import RowJob, open_index
from swav_platform.rows.layout import Row
from swav_platform.rows.make import Fetch, make_row
from swav_platform.rows.table import from_table, to_table

HELD_BYTES = 128 * 2**20
"""Encoded images that a data task holds at one time: a window of camera photographs would be gigabytes."""


def tables(job: RowJob, numbers: Sequence[int], killers: Killers) -> Iterator[pa.Table]:
    """Rows of these numbers, best of one window, as tables of one line. Plain function: Ray calls it, and so do tests."""
    plan = job.plan()
    for spec, fetch in _with_bytes(job, plan, numbers):
        yield to_table(make_row(spec, spared(fetch, killers), plan.replacement, job.config))


def guarded_tables(job: RowJob, numbers: Sequence[int], killers: Killers) -> Iterator[tuple[pa.Table, Killers]]:
    """The same tables, each with the samples that were found to kill who decodes them. Slower; survives such samples."""
    plan, known = job.plan(), dict(killers)
    for spec, fetch in _with_bytes(job, plan, numbers):
        table, found = make_row_guarded(spec, fetch, plan.replacement, job.config, known)
        known |= found
        yield table, found


def rows(job: RowJob, first: int, last: int) -> Iterator[Row]:
    """Rows first … last-1, without Ray."""
    return map(from_table, tables(job, range(first, last), job.killers))


def _with_bytes(job: RowJob, plan: Streams, numbers: Sequence[int]) -> Iterator[tuple[RowSpec, Fetch]]:
    index = open_index(job.index)
    for specs, lines in _held_together([plan.row(k) for k in numbers], index):
        fetch = RowsReader(index, lines, job.config.data.images.max_bytes)
        for spec in specs:
            yield spec, fetch


def _held_together(specs: Sequence[RowSpec], index: Index) -> Iterator[tuple[list[RowSpec], list[IndexLine]]]:
    """Rows one after the other whose images have HELD_BYTES or less together, and their lines; a row alone may have more."""
    group: list[RowSpec] = []
    lines: list[IndexLine] = []
    held = 0
    for spec in specs:
        found = index.lines(spec.samples)
        size = sum(line.size for line in found)
        if group and held + size > HELD_BYTES:
            yield group, lines
            group, lines, held = [], [], 0
        group.append(spec)
        lines += found
        held += size
    yield group, lines
