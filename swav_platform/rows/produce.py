"""Makes rows of the plan as Arrow tables: the one function behind data tasks of Ray, torchrun's ranks and the preview."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue

import pyarrow as pa

from swav_platform.data.order.plan import RowSpec
from swav_platform.data.outages import Outages
from swav_platform.data.samples import Killers
from swav_platform.rows.fetch import Fetch, with_bytes, without
from swav_platform.rows.isolation import IsolatedMaker
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row
from swav_platform.rows.make import make_row
from swav_platform.rows.table import from_table, to_table

AHEAD = 2
"""Rows that each process of `parallel_tables` may be ahead of the caller."""


def tables(
    job: RowJob, numbers: Sequence[int], killers: Killers | None = None, outages: Outages | None = None
) -> Iterator[pa.Table]:
    """Rows of these numbers, best of one window, as tables of one line, made in this process.

    killers: samples that are not decoded; those of the job by default. outages: as in `with_bytes`.
    """
    killers, plan = job.killers if killers is None else killers, job.plan()
    for spec, fetch in with_bytes(job, numbers, outages):
        yield to_table(make_row(spec, without(fetch, killers), plan.replacement, job.config))


def isolated_tables(
    job: RowJob, numbers: Sequence[int], killers: Killers, outages: Outages | None = None
) -> Iterator[tuple[pa.Table, Killers]]:
    """The same tables, made in a child process, each with the samples that were found to kill it."""
    known, plan = dict(killers), job.plan()
    with closing(IsolatedMaker(job.config)) as maker:
        for spec, fetch in with_bytes(job, numbers, outages):
            table, found = maker.table(spec, fetch, plan.replacement, known)
            known |= found
            yield table, found


def parallel_tables(
    job: RowJob, numbers: Sequence[int], processes: int, outages: Outages | None = None
) -> Generator[pa.Table, None, None]:
    """The same tables, in order, made in several child processes side by side."""
    known, plan = dict(job.killers), job.plan()
    makers = [IsolatedMaker(job.config) for _ in range(processes)]
    free: SimpleQueue[IsolatedMaker] = SimpleQueue()
    for maker in makers:
        free.put(maker)

    def make(spec: RowSpec, fetch: Fetch) -> pa.Table:
        maker = free.get()
        try:
            table, found = maker.table(spec, fetch, plan.replacement, dict(known))
        finally:
            free.put(maker)
        known.update(found)
        return table

    threads = ThreadPoolExecutor(processes, thread_name_prefix="rows")
    under_way: deque[Future[pa.Table]] = deque()
    try:
        for spec, fetch in with_bytes(job, numbers, outages):
            under_way.append(threads.submit(make, spec, fetch))
            if len(under_way) > AHEAD * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for maker in makers:
            maker.close()
        threads.shutdown(cancel_futures=True)


def rows(job: RowJob, first: int, last: int) -> Iterator[Row]:
    """Rows first … last-1, without Ray."""
    return map(from_table, tables(job, range(first, last)))
