"""All that a method may ask of the other ranks."""

from __future__ import annotations

from typing import Protocol

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
