"""The inverted lists of a neighbour index begin as the clusters that training found, so that no k-means over the set is needed.

Each cluster is split by k-means among its own members, and lists that are nearly empty are left out. Each vector then joins the
nearest of the lists around its own, twice. A set without clusters is one large cluster, which is split twice.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

LISTS = 4.0
"""Lists of a large set / √samples: the more, the fewer vectors hold the neighbours of a query, and the longer it looks for its lists."""

_LEAST, _FEW = 16, 64  # samples of a list: at least, and in a set too small for LISTS
_ROUNDS = 6  # of k-means
_TRAIN = 48  # samples per list that k-means sees
_PARTS = 64  # lists of a cluster from which on it is split twice
_REFINED = 2  # times that vectors may change to a list nearby
_NEAR = 48  # lists around a list
_BLOCK = 65_536  # vectors in memory
_PIECE = 8192  # vectors of a thread

Vectors = Callable[[np.ndarray], np.ndarray]
"""float32 [m, D] of unit length of the rows int64 [m]."""


def make_lists(clusters: np.ndarray, vectors: Vectors, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """List int32 [n] of each row, and the directions float32 [L, D] of the lists, from clusters int32 [n] (-1: none)."""
    size = list_size(len(clusters))
    groups = [np.arange(len(clusters))] if (clusters < 0).any() else _grouped(clusters)
    groups = [part for rows in groups for part in _halfway(rows, size, vectors, seed)]
    # one thread each: the parts are small, so that threads which share one would mostly wait for each other
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(os.cpu_count(), initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool,
    ):
        parts = list(pool.map(lambda rows: _split(rows, max(1, round(len(rows) / size)), vectors, seed), groups))
        first = np.cumsum([0, *(len(found) for _, found in parts)])
        own = np.empty(len(clusters), np.int32)
        own[np.concatenate(groups)] = np.concatenate([part + begin for (part, _), begin in zip(parts, first, strict=False)])
        lists = np.concatenate([found for _, found in parts])
        for _ in range(_REFINED):
            own, lists = _refined(own, lists, max(1, size // 8), vectors, pool)
    return own, lists


def _refined(
    own: np.ndarray, centres: np.ndarray, least: int, vectors: Vectors, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, np.ndarray]:
    """Each row in the nearest of the lists around its own, and the mean directions of the lists. Lists of fewer than `least` end."""
    kept = np.bincount(own, minlength=len(centres)) >= least
    lists = np.ascontiguousarray(centres[kept]) if kept.any() else centres
    around = faiss.knn(centres, lists, min(_NEAR, len(lists)), metric=faiss.METRIC_INNER_PRODUCT)[1]
    order = np.argsort(own, kind="stable")
    pieces = [order[at : at + _PIECE] for at in range(0, len(order), _PIECE)]
    found, sums = np.empty(len(own), np.int32), lists * np.float32(1e-6)  # a list that stays empty keeps its direction
    for rows, (joined, used, of_used) in zip(
        pieces, pool.map(lambda rows: _joined(vectors(rows), own[rows], around, lists), pieces), strict=True
    ):
        found[rows] = joined
        sums[used] += of_used
    return found, _unit(sums)


def list_size(n: int) -> int:
    """The wanted samples of a list in a set of n."""
    root = math.sqrt(n)
    return max(_LEAST, round(min(root, max(_FEW, root / LISTS))))


def _halfway(rows: np.ndarray, size: int, vectors: Vectors, seed: int) -> list[np.ndarray]:
    """The rows in parts that need one more split: k-means with k centres costs k × n, so that one split of all would take long."""
    if len(rows) <= _PARTS * size:
        return [rows]
    count = round(math.sqrt(len(rows) / size))
    return [rows[part] for part in _grouped(_split(rows, count, vectors, seed)[0])]


def _grouped(numbers: np.ndarray) -> list[np.ndarray]:
    """Rows of equal numbers, ascending."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.unique(numbers[order], return_index=True)[1][1:])


def _split(rows: np.ndarray, parts: int, vectors: Vectors, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The part int32 [m] of each row, and directions [parts, D]."""
    if parts == 1:
        total = sum(vectors(rows[i : i + _BLOCK]).sum(axis=0, dtype=np.float64) for i in range(0, len(rows), _BLOCK))
        return np.zeros(len(rows), np.int32), _unit(np.asarray(total)[None])
    chosen = np.sort(np.random.default_rng((seed, int(rows[0]))).permutation(len(rows))[: parts * _TRAIN])
    centres = kmeans(vectors(rows[chosen]), parts, seed)
    found = np.empty(len(rows), np.int32)
    for first in range(0, len(rows), _BLOCK):
        found[first : first + _BLOCK] = nearest(vectors(rows[first : first + _BLOCK]), centres)
    return found, centres


def _joined(
    values: np.ndarray, own: np.ndarray, around: np.ndarray, lists: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For vectors [m, D] in the order of their list: int32 [m], the nearest of the lists `around` it; these lists, and their sums."""
    found = np.empty(len(own), np.int32)
    starts = np.flatnonzero(np.diff(own, prepend=-1))
    for first, last in zip(starts, np.append(starts[1:], len(own)), strict=True):
        near = around[own[first]]
        found[first:last] = near[(values[first:last] @ lists[near].T).argmax(axis=1)]
    order = np.argsort(found, kind="stable")
    used, begin = np.unique(found[order], return_index=True)
    return found, used, np.add.reduceat(values[order], begin, axis=0)


def nearest(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """int64 [n]: the centre with the highest inner product with each row of float32 [n, D]."""
    found: np.ndarray = faiss.knn(values, centres, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]
    return found


def kmeans(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Unit-length centres float32 [k, D] of unit-length float32 [n, D]; k = count, or fewer for fewer vectors."""
    count = min(count, len(values))
    if count == len(values):
        return values
    found = faiss.Kmeans(values.shape[1], count, niter=_ROUNDS, spherical=True, seed=seed, min_points_per_centroid=1)
    found.train(values)
    return _unit(np.asarray(found.centroids))


def _unit(values: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(scaled, np.float32)
