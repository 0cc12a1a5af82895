"""A neighbour index in place of vectors in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from services.embeddings.search.postgres import InPostgres
from swav_platform.data.sets.read import EmbeddingSet
from swav_platform.errors import UserError
from swav_platform.neighbours.pgvector import SCHEME, table_of
from swav_platform.neighbours.search import Where
from swav_platform.neighbours.stored import MANIFEST

if TYPE_CHECKING:
    from swav_platform.neighbours.index import NeighbourIndex

Found = list[tuple[np.ndarray, np.ndarray]]
"""Rows of the store and cosines, best first, for each query."""


class Searched(Protocol):
    """Vectors that are not in memory, of a store of N samples."""

    @property
    def has(self) -> np.ndarray:
        """bool [N]: the samples whose vectors it has."""

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """float32 [m, D] of unit length of rows int64 [m] that it has."""

    def nearest(self, queries: np.ndarray, k: int, where: Where, hidden: np.ndarray) -> Found:
        """The k nearest samples that meet the conditions and are not hidden (bool [N]), for each unit-length query of [n, D]."""


@dataclass(frozen=True)
class Indexed:
    """An index of n samples of a store of N samples."""

    index: NeighbourIndex
    rows: np.ndarray  # int64 [n]: the store's row of each of the index
    known: np.ndarray  # bool [n]: whether the store has it; it lacks samples that were excluded since the index was built
    places: np.ndarray  # int64 [N]: the index' row of each of the store; -1 for samples that it was built without

    @classmethod
    def of(cls, index: NeighbourIndex, samples: np.ndarray) -> Indexed:
        """samples: int64 [N], numbers of the store's samples, ascending."""
        numbers = index.rows["sample"].to_numpy()
        rows = np.minimum(np.searchsorted(samples, numbers), len(samples) - 1)
        known = samples[rows] == numbers
        places = np.full(len(samples), -1, np.int64)
        places[rows[known]] = np.flatnonzero(known)
        return cls(index, rows, known, places)

    @property
    def has(self) -> np.ndarray:
        found: np.ndarray = self.places >= 0
        return found

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self.index.vectors.rows(self.places[rows])

    def nearest(self, queries: np.ndarray, k: int, where: Where, hidden: np.ndarray) -> Found:
        allowed = self.known & ~hidden[self.rows]
        if (met := self.index.allowed(where)) is not None:
            allowed &= met
        k = min(k, int(np.count_nonzero(allowed)))
        if not k or not len(queries):
            return [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
        scores, found = self.index.search_rows(queries, k, None if allowed.all() else allowed)
        return [(self.rows[of[of >= 0]], values[of >= 0]) for of, values in zip(found, scores, strict=True)]


def open_searched(folder: Path, embeddings: EmbeddingSet, index: Path | str | None) -> Callable[[np.ndarray], Searched] | None:
    """The index that is named, else the one beside the set, which takes the samples as Indexed.of does; None if there is none.

    Raises UserError if it is damaged or of another set, or if PostgreSQL does not answer.
    """
    if isinstance(index, str) and index.startswith(SCHEME):
        return partial(InPostgres.of, table_of(index), embeddings.digest)
    place = folder.with_name(f"{folder.name}-neighbours") if index is None else Path(index)
    if index is None and not (place / MANIFEST).is_file():
        return None
    from swav_platform.neighbours.index import open_neighbours

    try:
        return partial(Indexed.of, open_neighbours(place, of_set=embeddings.digest))
    except UserError as error:
        advice = "" if index is not None else f" Or remove {place}; the service then searches exactly."
        raise UserError(f"{error}{advice}") from error
