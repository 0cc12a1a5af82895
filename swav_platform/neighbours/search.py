"""What every backend of the neighbour search offers: questions, conditions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Hit:
    """A stored sample and its cosine to the query."""

    sample: int
    key: str
    shard: str
    label: str | None
    cluster: int
    score: float


@dataclass(frozen=True)
class Where:
    """Conditions that every answer meets; None: any. without: samples that are left out."""

    cluster: int | None = None
    label: str | None = None
    shard: str | None = None
    key_prefix: str | None = None
    without: Sequence[int] = ()

    def __bool__(self) -> bool:
        return bool(self.without) or any(v is not None for v in (self.cluster, self.label, self.shard, self.key_prefix))


ANY = Where()


class Neighbours(Protocol):
    """A set that can be searched. Excluded samples are never among the answers."""

    @property
    def samples(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def search(self, queries: np.ndarray, k: int, where: Where = ANY) -> list[list[Hit]]:
        """The k nearest samples, best first, for each query of float32 [n, dim] of unit length; fewer if there are fewer."""

    def vector(self, sample: int) -> np.ndarray:
        """float32 [dim] of unit length. Raises KeyError for a sample that is unknown or excluded."""

    def close(self) -> None: ...
