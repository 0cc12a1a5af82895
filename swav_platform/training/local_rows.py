"""Rows made by processes of the rank itself, where no Ray brings them: the same rows, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch.utils.data import DataLoader, Dataset

from swav_platform.config import Config
from swav_platform.data.datasets import plan_of
from swav_platform.data.index import Index, IndexLine
from swav_platform.data.read import ReadFailure, read_samples
from swav_platform.data.streams import Streams
from swav_platform.images.row import Row, from_table, make_row, to_table
from swav_platform.methods.comm import Comm


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
        return Streams(plan_of(self.index, self.config.data, self.config.seed), self.config.data.streams)

    def __getitem__(self, row: int) -> pa.Table:
        return to_table(make_row(self.plan.row(row), self._fetch, self.plan.stand_in, self.config))

    def _fetch(self, samples: Sequence[int]) -> Mapping[int, tuple[IndexLine, bytes | ReadFailure]]:
        lines = self.index.lines(sorted({int(n) for n in samples}))
        contents = read_samples(lines, max_bytes=self.config.data.images.max_bytes)
        return {line.number: (line, contents[line.number]) for line in lines}


def local_rows(config: Config, index: Path, comm: Comm) -> Callable[[int, int], Iterator[Row]]:
    """`rows(first, last)` of the training loop, made by `data.tasks` processes of this rank two rows ahead each.

    They are not guarded as data tasks are: an image that kills its decoder ends the run.
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
