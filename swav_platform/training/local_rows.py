"""Rows made by processes of the rank itself, where no Ray brings them: the same rows, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch.utils.data import DataLoader, Dataset

from swav_platform.config import Config
from swav_platform.data.datasets import streams_of
from swav_platform.data.index.lookup import Index
from swav_platform.data.order.streams import Streams
from swav_platform.methods.comm import Comm
from swav_platform.rows.fetch import RowsReader
from swav_platform.rows.layout import Row
from swav_platform.rows.make import make_row
from swav_platform.rows.table import from_table, to_table


class RowTables(Dataset[pa.Table]):
    """Row k of the plan as an Arrow table: one buffer, where a pickled row would send its pixels twice."""

    def __init__(self, config: Config, index: Path) -> None:
        self.config, self.path = config, index

    @cached_property
    def index(self) -> Index:
        """Opened by the process that reads."""
        return Index.open(self.path)

    @cached_property
    def plan(self) -> Streams:
        return streams_of(self.index, self.config.data, self.config.seed)

    def __getitem__(self, row: int) -> pa.Table:
        spec = self.plan.row(row)
        fetch = RowsReader(self.index, self.index.lines(spec.samples), self.config.data.images.max_bytes)
        return to_table(make_row(spec, fetch, self.plan.replacement, self.config))


def local_rows(config: Config, index: Path, comm: Comm) -> Callable[[int, int], Iterator[Row]]:
    """`rows(first, last)` of the training loop, made by `data.tasks` processes of this rank two rows ahead each.

    They are not guarded as data tasks are: an image that kills the process itself ends the run.
    """

    def rows(first: int, last: int) -> Iterator[Row]:
        own: Any = range(first + comm.rank, last, comm.size)
        tables = DataLoader(
            RowTables(config, index),
            batch_size=None,
            sampler=own,
            num_workers=config.data.tasks,
            prefetch_factor=2,
            multiprocessing_context="forkserver",  # threads of torch do not survive a fork
        )
        return map(from_table, tables)

    return rows
