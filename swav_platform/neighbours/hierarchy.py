"""Hierarchical balanced sampling (Vo et al. 2024, "Automatic Data Curation for Self-Supervised Learning", arXiv 2405.15613).

Clusters of clusters spread more evenly over what the images show than the images themselves. A budget that is divided evenly from
the top of this hierarchy down takes few of the frequent images and all of the rare ones.
"""

from __future__ import annotations

import numpy as np

from swav_platform.neighbours.lists import kmeans, nearest

FACTOR = 8
"""Clusters of a level for each one of the level above."""

TOP = 8
"""Clusters of the highest level, at least."""

_ROUNDS = 2  # of resampling


def levels(centres: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """The parent of each cluster, level by level from the lowest up: int64 [L]. centres: float32 [L, D] of unit length.

    Empty if there are too few clusters for a level above.
    """
    found = list[np.ndarray]()
    while len(centres) >= FACTOR * TOP:
        above = _resampled(centres, len(centres) // FACTOR, seed + len(found))
        parents = nearest(centres, above)
        used, parents = np.unique(parents, return_inverse=True)
        found.append(parents)
        centres = np.ascontiguousarray(above[used])
    return found


def _resampled(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means, repeated on the points nearest to each centre (section 3.3): the centres then follow the density less."""
    centres = kmeans(values, count, seed)
    for _ in range(_ROUNDS):
        own = nearest(values, centres)
        cosines = np.einsum("nd,nd->n", values, centres[own])
        order = np.lexsort((-cosines, own))
        place = np.arange(len(order)) - np.searchsorted(own[order], own[order])
        kept = order[place < max(1, FACTOR // 2)]
        centres = kmeans(np.ascontiguousarray(values[np.sort(kept)]), count, seed)
    return centres


def quotas(sizes: np.ndarray, parents: list[np.ndarray], budget: int) -> np.ndarray:
    """int64 [L]: how many samples to take from each cluster of the lowest level. sizes: int64 [L]; budget: at most their sum.

    At each level, the children of a cluster get equal shares, and what one can't use goes to the others (section 3.4).
    """
    totals = [sizes]
    for of_level in parents:
        totals.append(np.bincount(of_level, weights=totals[-1]).astype(np.int64))
    given = water_fill(totals[-1], budget)
    for level in range(len(parents) - 1, -1, -1):
        below = np.zeros(len(totals[level]), np.int64)
        for number, share in enumerate(given.tolist()):
            children = np.flatnonzero(parents[level] == number)
            below[children] = water_fill(totals[level][children], share)
        given = below
    return given


def water_fill(sizes: np.ndarray, budget: int) -> np.ndarray:
    """int64 [m]: min(size, q) with the q that makes the sum `budget`; what does not divide evenly goes to the largest."""
    budget = min(budget, int(sizes.sum()))
    order = np.argsort(sizes, kind="stable")
    given, left = np.zeros(len(sizes), np.int64), budget
    for rank, child in enumerate(order.tolist()):
        given[child] = min(int(sizes[child]), left // (len(order) - rank))
        left -= int(given[child])
    return given
