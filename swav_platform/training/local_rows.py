"""Rows for a rank that torchrun started: made on its own machine, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

from swav_platform.methods.comm import Comm
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row
from swav_platform.rows.produce import parallel_tables
from swav_platform.rows.table import from_table


def local_rows(job: RowJob, comm: Comm) -> Callable[[int, int], Iterator[Row]]:
    """`rows(first, last)` of the training loop: this rank's share, in order, made by `data.tasks` child processes."""

    def rows(first: int, last: int) -> Iterator[Row]:
        own = range(first + comm.rank, last, comm.size)
        with closing(parallel_tables(job, own, job.config.data.tasks)) as tables:
            yield from map(from_table, tables)

    return rows
