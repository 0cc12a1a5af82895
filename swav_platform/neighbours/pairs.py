"""Pairs of stored vectors above a cosine, and the groups that they connect.

Each list is compared with itself and with the vectors for which it is one of their nearest lists. How many lists are looked at is
measured: as many as find the wanted share of the true pairs of a sample of vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from swav_platform.neighbours.exact import exact_search
from swav_platform.neighbours.stored import StoredVectors

log = logging.getLogger("swav")

WANTED = 0.995
"""Share of the true pairs of the sample that must be found."""

_SAMPLE = 400  # vectors
_MOST = 64  # lists of a vector
_CELLS = 16_000_000  # cosines in memory
_NEIGHBOURS = 20  # true ones of a sampled vector that are looked for
_DENSE = 4  # edges for each vector from which on they are condensed


@dataclass(frozen=True)
class Groups:
    """group: int64 [n], a number for each row; rows that are like no other have a number of their own. pairs: how many were found."""

    group: np.ndarray
    pairs: int
    lists: int  # that each vector was compared with


class _Components:
    """Connected components of pairs that arrive in blocks. Holds O(n) edges, however many pairs there are."""

    def __init__(self, n: int) -> None:
        self._n, self._edges, self._held = n, list[np.ndarray](), 0

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        self._edges.append(np.stack([first, second]))
        self._held += len(first)
        if self._held > _DENSE * self._n:
            group = self.groups()
            one = np.full(self._n, -1, np.int64)
            one[group[::-1]] = np.arange(self._n - 1, -1, -1)  # the smallest row of each group
            rows = np.flatnonzero(one[group] != np.arange(self._n))
            self._edges, self._held = [np.stack([one[group[rows]], rows])], len(rows)

    def groups(self) -> np.ndarray:
        first, second = np.concatenate([*self._edges, np.zeros((2, 0), np.int64)], axis=1)
        graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(self._n, self._n))
        return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def groups(
    vectors: StoredVectors,
    threshold: float,
    same: np.ndarray | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    heard: Callable[[np.ndarray, np.ndarray], None] = lambda first, second: None,
) -> Groups:
    """Groups of rows that are connected by pairs of at least this cosine.

    same: uint64 [n]; rows with an equal value other than 0 belong together whatever their cosine. progress(done, total): lists.
    heard(first, second): rows of the pairs of a list; a pair may be found twice.
    """
    n, found = len(vectors), _Components(len(vectors))
    if same is not None:
        for rows in _equal(same):
            found.add(np.full(len(rows) - 1, rows[0]), rows[1:])
    centres = list_centres(vectors)
    wanted = _lists_needed(vectors, centres, threshold)
    pairs = 0
    for done, (first, second) in enumerate(_pairs(vectors, centres, wanted, threshold)):
        pairs += len(first)
        found.add(first, second)
        heard(first, second)
        progress(min(done + 1, len(centres)), len(centres))
    vectors.release()
    return Groups(found.groups() if n else np.zeros(0, np.int64), pairs, wanted)


def list_centres(vectors: StoredVectors) -> np.ndarray:
    """Mean directions float32 [L, D] of the lists."""
    sizes = np.bincount(vectors.lists)
    ends = np.cumsum(sizes)
    means = [vectors.lines(end - size, end).sum(axis=0) for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
    vectors.release()
    found = np.stack(means)
    return np.ascontiguousarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12), np.float32)


def _lists_needed(vectors: StoredVectors, centres: np.ndarray, threshold: float) -> int:
    """The smallest power of two of lists near a vector that hold WANTED of its true pairs, for a sample of vectors."""
    n = len(vectors)
    rows = np.sort(np.random.default_rng(2).permutation(n)[:_SAMPLE])
    queries = vectors.rows(rows)
    scores, found = exact_search(vectors, queries, min(_NEIGHBOURS + 1, n))
    true = (scores >= threshold) & (found != rows[:, None]) & (found >= 0)
    if not true.any():
        return 1
    near = faiss.knn(queries, centres, min(_MOST, len(centres)), metric=faiss.METRIC_INNER_PRODUCT)[1]
    own, lists = vectors.lists[rows], vectors.lists[np.maximum(found, 0)]
    # a pair is found from either side; this counts the sampled side only
    rank = np.where(lists[:, :, None] == near[:, None, :], np.arange(near.shape[1]), near.shape[1]).min(axis=2)
    rank[lists == own[:, None]] = 0
    wanted = 1
    while wanted < near.shape[1] and (rank[true] < wanted).mean() < WANTED:
        wanted *= 2
    return min(wanted, len(near[0]))


def _pairs(vectors: StoredVectors, centres: np.ndarray, wanted: int, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of the pairs, list by list; a pair occurs once for each list in which it is found."""
    sizes = np.bincount(vectors.lists, minlength=len(centres))
    ends, order = np.cumsum(sizes), vectors.order
    visitors = _visitors(vectors, centres, wanted)
    for number, (size, end) in enumerate(zip(sizes.tolist(), ends.tolist(), strict=True)):
        rows, members = order[end - size : end], vectors.lines(end - size, end)
        firsts, seconds = [], []
        at_once = max(1, _CELLS // max(size, 1))
        for begin in range(0, size, at_once):
            cosines = members[begin : begin + at_once] @ members.T
            first, second = np.nonzero(cosines >= threshold)
            kept = first + begin < second
            firsts.append(rows[first[kept] + begin])
            seconds.append(rows[second[kept]])
        guests = visitors(number)
        for begin in range(0, len(guests), at_once):
            some = guests[begin : begin + at_once]
            first, second = np.nonzero(vectors.rows(some, release=False) @ members.T >= threshold)
            firsts.append(some[first])
            seconds.append(rows[second])
        yield np.concatenate(firsts), np.concatenate(seconds)


def _visitors(vectors: StoredVectors, centres: np.ndarray, wanted: int) -> Callable[[int], np.ndarray]:
    """For a list, the rows of other lists for which it is one of the `wanted` nearest lists."""
    n = len(vectors)
    if wanted <= 1:
        return lambda number: np.zeros(0, np.int64)
    lists = np.empty((n, wanted), np.int32)
    order = vectors.order
    for first in range(0, n, 65_536):
        block = vectors.lines(first, min(first + 65_536, n))
        lists[first : first + len(block)] = faiss.knn(block, centres, wanted, metric=faiss.METRIC_INNER_PRODUCT)[1]
    lines = np.argsort(lists.ravel(), kind="stable")
    starts = np.searchsorted(lists.ravel()[lines], np.arange(len(centres) + 1))

    def of_list(number: int) -> np.ndarray:
        rows = order[lines[starts[number] : starts[number + 1]] // wanted]
        return np.asarray(rows[vectors.lists[rows] != number])

    return of_list


def _equal(values: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of equal values other than 0, ascending."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(order), 1), bool), ordered[1:] != ordered[:-1]]))
    sizes = np.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        if ordered[start]:
            yield order[start : start + size]
