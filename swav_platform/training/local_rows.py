"""Rows for a rank that torchrun started: made on its own machine, without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing

from swav_platform.methods.comm import Comm
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row
from swav_platform.rows.produce import parallel_tables
from swav_platform.rows.table import from_table
from swav_platform.training.collectives import available_cores


def local_rows(job: RowJob, comm: Comm) -> Callable[[int, int], Iterator[Row]]:
    """`rows(first, last)` of the training loop: this rank's share, in order, made by `data.tasks` child processes."""

    def rows(first: int, last: int) -> Iterator[Row]:
        own = range(first + comm.rank, last, comm.size)
        cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", comm.size))
        with closing(parallel_tables(job, own, _tasks(job, cores))) as tables:
            yield from map(from_table, tables)

    return rows


def _tasks(job: RowJob, cores: int) -> int:
    """`auto` leaves this rank's step one of its cores."""
    tasks = job.config.data.tasks
    return max(1, cores - 1) if tasks == "auto" else tasks
