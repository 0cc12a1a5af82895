"""Rows for a rank that torchrun started: made on its own machine, without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing

from swav_platform.failures import Tell
from swav_platform.methods.comm import Comm
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row
from swav_platform.rows.produce import parallel_tables
from swav_platform.rows.table import from_table
from swav_platform.training.collectives import available_cores


def local_rows(job: RowJob, comm: Comm, tell: Tell | None = None) -> Callable[[int, int], Iterator[Row]]:
    """`rows(first, last)` of the training loop: this rank's share, in order, made by `data.tasks` child processes. tell: called during
    waits for a storage; by default they are in the log."""

    def rows(first: int, last: int) -> Iterator[Row]:
        own = range(first + comm.rank, last, comm.size)
        cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", comm.size))
        outages = job.outages() if tell is None else job.outages().telling(tell)
        with closing(parallel_tables(job, own, _tasks(job, cores), outages)) as tables:
            yield from map(from_table, tables)

    return rows


def _tasks(job: RowJob, cores: int) -> int:
    """`auto` leaves this rank's step one of its cores."""
    tasks = job.config.data.tasks
    return max(1, cores - 1) if tasks == "auto" else tasks
