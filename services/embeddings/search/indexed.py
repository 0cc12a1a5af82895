"""A neighbour index in place of vectors in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from swav_platform.data.sets.read import EmbeddingSet
from swav_platform.errors import UserError
from swav_platform.neighbours.stored import MANIFEST

if TYPE_CHECKING:
    from swav_platform.neighbours.index import NeighbourIndex


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
        """bool [N]"""
        found: np.ndarray = self.places >= 0
        return found

    def vector(self, row: int) -> np.ndarray:
        found: np.ndarray = self.index.vectors.rows(self.places[row : row + 1])[0]
        return found

    def nearest(self, queries: np.ndarray, k: int, shown: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows of the store and cosines, best first, for each query. shown: bool [N]."""
        if not k or not len(queries):
            return [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
        allowed = self.known & shown[self.rows]
        scores, found = self.index.search_rows(queries, k, None if allowed.all() else allowed)
        return [(self.rows[of[of >= 0]], values[of >= 0]) for of, values in zip(found, scores, strict=True)]


def open_indexed(folder: Path, embeddings: EmbeddingSet, index: Path | None) -> NeighbourIndex | None:
    """The index that is named, else the one beside the set; None if there is none. Raises UserError if it is damaged or of another set."""
    place = folder.with_name(f"{folder.name}-neighbours") if index is None else index
    if index is None and not (place / MANIFEST).is_file():
        return None
    from swav_platform.neighbours.index import open_neighbours

    try:
        return open_neighbours(place, of_set=embeddings.digest)
    except UserError as error:
        advice = "" if index is not None else f" Or remove {place}; the service then searches exactly."
        raise UserError(f"{error}{advice}") from error
