"""The collectives that a method may use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Comm(Protocol):
    """One rank's view of all ranks. `sum` and `max` may overwrite their argument."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, x: Tensor) -> Tensor:
        """Returns the elementwise sum over ranks, the same on every rank."""

    def max(self, x: Tensor) -> Tensor:
        """Returns the elementwise maximum over ranks, the same on every rank."""

    def gather_in_order(self, x: Tensor) -> Tensor:
        """Concatenates [n_r, ...] of every rank in rank order to [sum of n_r, ...]. n_r may differ between ranks."""

    def gather_to_first(self, x: Tensor) -> Tensor:
        """`gather_in_order` on rank 0; an empty tensor [0, ...] on the others."""

    def broadcast(self, x: Tensor) -> Tensor:
        """Returns rank 0's tensor on every rank. The others pass one of its shape and dtype, which may be overwritten."""


class LocalComm:
    """A single process: every collective returns its argument."""

    rank = 0
    size = 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x

    def gather_in_order(self, x: Tensor) -> Tensor:
        return x

    def gather_to_first(self, x: Tensor) -> Tensor:
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        return x


class ExtraSum:
    """Wraps `comm` so that its next `sum` also sums `extra`, in the same collective. Later calls pass through unchanged.

    After that call, `extra` is the sum over ranks.
    """

    def __init__(self, comm: Comm, extra: Tensor) -> None:
        self.comm, self.extra, self.rank, self.size = comm, extra, comm.rank, comm.size
        self.pending = True

    def sum(self, x: Tensor) -> Tensor:
        if not self.pending:
            return self.comm.sum(x)
        self.pending = False
        both = self.comm.sum(torch.cat([x.flatten(), self.extra.flatten().to(x)]))
        self.extra = both[x.numel() :].view(self.extra.shape)
        return both[: x.numel()].view(x.shape)

    def max(self, x: Tensor) -> Tensor:
        return self.comm.max(x)

    def gather_in_order(self, x: Tensor) -> Tensor:
        return self.comm.gather_in_order(x)

    def gather_to_first(self, x: Tensor) -> Tensor:
        return self.comm.gather_to_first(x)

    def broadcast(self, x: Tensor) -> Tensor:
        return self.comm.broadcast(x)


def in_position_order(own: Mapping[int, Tensor], rows: range, comm: Comm) -> Tensor:
    """Collects the entries [...] of all `rows` as [len(rows), ...], the same on every rank.

    own: row number -> entry. Each row belongs to exactly one rank, and each rank has at least one row.
    Costs one comm.sum. It is exact, because only zeros are added to an entry.
    """
    example = next(iter(own.values()))
    whole = example.new_zeros(len(rows), *example.shape)
    for row, entry in own.items():
        whole[row - rows.start] = entry
    return comm.sum(whole)
