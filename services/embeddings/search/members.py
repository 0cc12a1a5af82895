"""The members of clusters: stored samples and added items together."""

from __future__ import annotations

import numpy as np

from services.embeddings.search.log import Item
from services.embeddings.store import Store


class Members:
    """The clusters as they are now; for the length of a request, because items come and go."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._items: dict[int, list[Item]] = {}
        for item in sorted(store.items.shown(), key=lambda item: -item.score):
            self._items.setdefault(item.cluster, []).append(item)
        self.sizes: np.ndarray = store.sizes.copy()  # int64 [K]
        for cluster, items in self._items.items():
            if cluster >= 0:
                self.sizes[cluster] += len(items)

    def best(self, cluster: int, limit: int) -> list[tuple[int | Item, float]]:
        """Rows of stored samples and items with their cosines to the prototype, best first."""
        rows = [int(row) for row in self._store.members(cluster, limit)]
        found: list[tuple[int | Item, float]] = [(row, float(self._store.scores[row])) for row in rows]
        found += [(item, item.score) for item in self._items.get(cluster, [])[:limit]]
        return sorted(found, key=lambda member: -member[1])[:limit]
