"""The last features of the stream, so that small batches can share prototypes out equally (Caron et al. 2020, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from swav_platform.methods.comm import Comm
from swav_platform.methods.method import PositionOrderedState, RowOutputs


class Queue:
    """The newest `length` features of each assignment view over all ranks; each rank keeps those of the rows it trained.

    Which rows are kept follows from row numbers alone, so their union is the same for any number of ranks and costs no
    communication. `length` is cut to a multiple of the batch. Empty (and never used) with length 0.
    """

    def __init__(self, *, length: int, start: int, batch: int, row_size: int, views: int, dim: int) -> None:
        self.steps, self.start = length // batch, start
        self.rows_per_step = batch // row_size
        self.shape = (views, row_size, dim)
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}  # row -> unit features [A, R, D], weights [R]

    def used(self, step: int) -> bool:
        """Whether it was full before `step`."""
        return self.steps > 0 and step >= self.start + self.steps

    def contents(self) -> tuple[Tensor, Tensor]:
        """This rank's share, oldest first: features [A, q, D] and weights [q]."""
        kept = [self.rows[k] for k in sorted(self.rows)]
        return torch.cat([f for f, _ in kept], dim=1), torch.cat([w for _, w in kept])

    def fill(self, step: int, rows: Iterable[RowOutputs], views: tuple[int, ...]) -> None:
        """Takes in the features of `step` and lets go of what is older than the queue is long."""
        if not self.steps or step < self.start:
            return
        for row in rows:
            self.rows[row.row] = (row.embeddings[list(views)].detach(), row.weight)
        oldest = (step + 1 - self.steps) * self.rows_per_step
        self.rows = {k: kept for k, kept in self.rows.items() if k >= oldest}

    def state(self) -> PositionOrderedState:
        """This rank's rows."""
        numbers = sorted(self.rows)
        if not numbers:
            empty = {"features": torch.zeros(0, *self.shape), "weight": torch.zeros(0, self.shape[1])}
            return PositionOrderedState(torch.zeros(0, dtype=torch.int64), empty)
        features, weight = (torch.stack(list(column)) for column in zip(*(self.rows[k] for k in numbers), strict=True))
        return PositionOrderedState(torch.tensor(numbers), {"features": features, "weight": weight})

    def load(self, state: PositionOrderedState, comm: Comm, device: torch.device) -> None:
        """Takes this rank's share of the rows of all ranks."""
        columns = zip(state.rows.tolist(), state.tensors["features"], state.tensors["weight"], strict=True)
        mine = ((k, f, w) for k, f, w in columns if k % comm.size == comm.rank)
        self.rows = {k: (f.to(device), w.to(device)) for k, f, w in mine}
