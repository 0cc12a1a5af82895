"""The last features of the stream, so that small batches can share prototypes out equally (Caron et al. 2020, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from swav_platform.methods.comm import Comm
from swav_platform.methods.method import PositionOrderedState, RowOutputs


class Queue:
    """The newest `length` features of each assignment view over all ranks; each rank keeps those of the rows it trained.

    Which rows are kept follows from row numbers alone, so their union is the same for any number of ranks and costs no
    communication. `length` is cut to a multiple of the batch. Empty (and never used) with length 0. Not used while the drift
    measured in the step before was more than `most_drift`, if that is given.
    """

    def __init__(
        self, *, length: int, start: int, batch: int, row_size: int, views: int, dim: int, most_drift: float | None = None
    ) -> None:
        self.steps, self.start, self.most_drift = length // batch, start, most_drift
        self.drift = math.inf
        self.rows_per_step = batch // row_size
        self.shape = (views, row_size, dim)
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}  # row -> unit features [A, R, D], weights [R]

    def full(self, step: int) -> bool:
        """Whether it was full before `step`."""
        return self.steps > 0 and step >= self.start + self.steps

    def used(self, step: int) -> bool:
        """Whether the codes of `step` are to be shared out over it too."""
        return self.full(step) and (self.most_drift is None or self.drift <= self.most_drift)

    def drift_sums(self, features: Tensor, weight: Tensor) -> Tensor:
        """Of the step's features [A, b, D] with weights [b] and of the queue's, what adds up over ranks: [2, A, D + 1]."""
        parts = ((features, weight), self.contents())
        ones = (torch.cat([f, torch.ones_like(f[..., :1])], dim=-1) * w[:, None] for f, w in parts)
        return torch.stack([part.sum(1) for part in ones])

    def note_drift(self, sums: Tensor) -> None:
        """How far the step's mean feature lies from the queue's, from the `drift_sums` of all ranks: its squared distance over
        that expected of two samples of one distribution, s^2 (1/b + 1/q) with s^2 = 1 - ||mean||^2, mean over views."""
        mean, count = sums[..., :-1] / sums[..., -1:], sums[:, 0, -1]
        apart = (mean[0] - mean[1]).square().sum(-1)
        by_chance = (1 - mean[1].square().sum(-1)).clamp_min(1e-12) * (1 / count).sum()
        self.drift = (apart / by_chance).mean().item()

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
        """This rank's rows, and the drift, which all know."""
        numbers = sorted(self.rows)
        shared = {} if self.most_drift is None else {"drift": torch.tensor(self.drift, dtype=torch.float64)}
        if not numbers:
            empty = {"features": torch.zeros(0, *self.shape), "weight": torch.zeros(0, self.shape[1])}
            return PositionOrderedState(torch.zeros(0, dtype=torch.int64), empty, shared)
        features, weight = (torch.stack(list(column)) for column in zip(*(self.rows[k] for k in numbers), strict=True))
        return PositionOrderedState(torch.tensor(numbers), {"features": features, "weight": weight}, shared)

    def load(self, state: PositionOrderedState, comm: Comm, device: torch.device) -> None:
        """Takes this rank's share of the rows of all ranks."""
        columns = zip(state.rows.tolist(), state.tensors["features"], state.tensors["weight"], strict=True)
        self.drift = state.shared["drift"].item() if "drift" in state.shared else math.inf
        mine = ((k, f, w) for k, f, w in columns if k % comm.size == comm.rank)
        self.rows = {k: (f.to(device), w.to(device)) for k, f, w in mine}
