"""The queue of recent features, which lets small batches balance prototypes (Caron et al. 2020, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from swav_platform.methods.comm import Comm
from swav_platform.methods.method import PositionOrderedState, RowOutputs


class Queue:
    """The newest `length` features of each assignment view over all ranks. Each rank keeps those of the rows it trained.

    Row numbers alone decide which rows are kept, so their union is the same for any number of ranks and needs no communication.
    `length` is rounded down to a multiple of the batch; with length 0 the queue stays empty and unused.
    With `most_drift`, the queue is not used while the drift measured in the previous step exceeds it.
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
        """Whether the queue was full before `step`."""
        return self.steps > 0 and step >= self.start + self.steps

    def used(self, step: int) -> bool:
        """Whether the codes of `step` are balanced over the queue too."""
        return self.full(step) and (self.most_drift is None or self.drift <= self.most_drift)

    def drift_sums(self, features: Tensor, weight: Tensor) -> Tensor:
        """[2, A, D + 1]: weighted sums and counts of the step's features [A, b, D] (weights [b]) and of the queue's.

        Sum them over ranks for `note_drift`.
        """
        parts = ((features, weight), self.contents())
        ones = (torch.cat([f, torch.ones_like(f[..., :1])], dim=-1) * w[:, None] for f, w in parts)
        return torch.stack([part.sum(1) for part in ones])

    def note_drift(self, sums: Tensor) -> None:
        """Sets `drift` from the `drift_sums` of all ranks."""
        self.drift = drift_of(sums)

    def contents(self) -> tuple[Tensor, Tensor]:
        """This rank's share, oldest first: features [A, q, D] and weights [q]."""
        kept = [self.rows[k] for k in sorted(self.rows)]
        return torch.cat([f for f, _ in kept], dim=1), torch.cat([w for _, w in kept])

    def fill(self, step: int, rows: Iterable[RowOutputs], views: tuple[int, ...]) -> None:
        """Adds the features of `step` and drops rows that are older than the queue's length."""
        if not self.steps or step < self.start:
            return
        for row in rows:
            self.rows[row.row] = (row.embeddings[list(views)].detach(), row.weight)
        oldest = (step + 1 - self.steps) * self.rows_per_step
        self.rows = {k: kept for k, kept in self.rows.items() if k >= oldest}

    def state(self) -> PositionOrderedState:
        """This rank's rows. The drift is shared by all ranks."""
        numbers = sorted(self.rows)
        shared = {} if self.most_drift is None else {"drift": torch.tensor(self.drift, dtype=torch.float64)}
        if not numbers:
            empty = {"features": torch.zeros(0, *self.shape), "weight": torch.zeros(0, self.shape[1])}
            return PositionOrderedState(torch.zeros(0, dtype=torch.int64), empty, shared)
        features, weight = (torch.stack(list(column)) for column in zip(*(self.rows[k] for k in numbers), strict=True))
        return PositionOrderedState(torch.tensor(numbers), {"features": features, "weight": weight}, shared)

    def load(self, state: PositionOrderedState, comm: Comm, device: torch.device) -> None:
        """Loads this rank's share of the rows of all ranks."""
        columns = zip(state.rows.tolist(), state.tensors["features"], state.tensors["weight"], strict=True)
        self.drift = state.shared["drift"].item() if "drift" in state.shared else math.inf
        mine = ((k, f, w) for k, f, w in columns if k % comm.size == comm.rank)
        self.rows = {k: (f.to(device), w.to(device)) for k, f, w in mine}


def drift_of(sums: Tensor) -> float:
    """The drift, from the `Queue.drift_sums` of all ranks.

    Drift is the squared distance between the mean features of the step and of the queue, divided by its expected value.
    For two samples of one distribution, that is s^2 (1/b + 1/q) with s^2 = 1 - ||mean||^2. Drift is averaged over views.
    """
    mean, count = sums[..., :-1] / sums[..., -1:], sums[:, 0, -1]
    distance = (mean[0] - mean[1]).square().sum(-1)
    expected = (1 - mean[1].square().sum(-1)).clamp_min(1e-12) * (1 / count).sum()
    return (distance / expected).mean().item()
