"""All that a method may ask of the other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Comm(Protocol):
    """Four verbs. `sum` and `max` may overwrite what they are given."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum over ranks; the same on each."""

    def max(self, x: Tensor) -> Tensor:
        """Elementwise maximum over ranks; the same on each."""

    def gather_in_order(self, x: Tensor) -> Tensor:
        """[n_r, ...] of every rank, n_r as may be, joined in rank order: [sum of n_r, ...] on each."""


class LocalComm:
    """One process: there is nobody to ask."""

    rank = 0
    size = 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x

    def gather_in_order(self, x: Tensor) -> Tensor:
        return x


class Carrying:
    """`comm`, whose next `sum` takes `passenger` along; after it, `carried` is the passenger's own sum over ranks."""

    def __init__(self, comm: Comm, passenger: Tensor) -> None:
        self.comm, self.carried, self.rank, self.size = comm, passenger, comm.rank, comm.size
        self.waiting = True

    def sum(self, x: Tensor) -> Tensor:
        if not self.waiting:
            return self.comm.sum(x)
        self.waiting = False
        both = self.comm.sum(torch.cat([x.flatten(), self.carried.flatten().to(x)]))
        self.carried = both[x.numel() :].view(self.carried.shape)
        return both[: x.numel()].view(x.shape)

    def max(self, x: Tensor) -> Tensor:
        return self.comm.max(x)

    def gather_in_order(self, x: Tensor) -> Tensor:
        return self.comm.gather_in_order(x)


def in_position_order(own: Mapping[int, Tensor], rows: range, comm: Comm) -> Tensor:
    """[len(rows), ...]: the entry [...] of each of `rows`, whichever rank has it; the same on each rank.

    own: row number -> entry; every row is one rank's, and every rank has one at least. One comm.sum, exact, since nothing
    but zeros is added to an entry.
    """
    whole = torch.zeros_like(next(iter(own.values()))).expand(len(rows), *next(iter(own.values())).shape).clone()
    for row, entry in own.items():
        whole[row - rows.start] = entry
    return comm.sum(whole)
