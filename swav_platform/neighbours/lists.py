"""The inverted lists of a neighbour index are the clusters that training found, so that no k-means over the set is needed.

Clusters that are much larger than the others are split, by k-means among their own members, and those that are nearly empty are
left out. Each vector then joins the nearest of these lists. A set without clusters gets lists by k-means over a sample.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

PER_LIST = 1.0
"""The wanted size of a list is this × √samples: as much work to find the lists of a query as to search in them."""

_SMALLEST = 16  # samples of a list
_ROUNDS = 6  # of k-means
_TRAIN = 48  # samples per list that k-means sees
_BLOCK = 65_536  # vectors in memory

Vectors = Callable[[np.ndarray], np.ndarray]
"""float32 [m, D] of unit length of the rows int64 [m]."""


def make_lists(clusters: np.ndarray, vectors: Vectors, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """List int32 [n] of each row, and the directions float32 [L, D] of the lists, from clusters int32 [n] (-1: none)."""
    n = len(clusters)
    wanted = max(_SMALLEST, round(PER_LIST * math.sqrt(n)))
    if (clusters < 0).any():
        return _without_clusters(n, max(1, n // wanted), vectors, seed)
    order = np.argsort(clusters, kind="stable")
    _, starts = np.unique(clusters[order], return_index=True)
    of_cluster = np.split(order, starts[1:])
    # one thread each: the parts are small, so that threads which share one would mostly wait for each other
    with ThreadPoolExecutor(os.cpu_count(), initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        parts = list(pool.map(lambda rows: _split(rows, max(1, round(len(rows) / wanted)), vectors, seed), of_cluster))
    sizes = np.concatenate([np.bincount(own, minlength=len(found)) for own, found in parts])
    centres = np.concatenate([found for _, found in parts])
    kept = sizes >= max(1, wanted // 8)
    centres = np.ascontiguousarray(centres[kept]) if kept.any() else centres
    return _nearest(np.arange(n), centres, vectors), centres


def _without_clusters(n: int, count: int, vectors: Vectors, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[: count * _TRAIN])
    centres = kmeans(vectors(chosen), count, seed)
    return _nearest(np.arange(n), centres, vectors), centres


def _split(rows: np.ndarray, parts: int, vectors: Vectors, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The part int32 [m] of each row, and directions [parts, D]."""
    if parts == 1:
        total = sum(vectors(rows[i : i + _BLOCK]).sum(axis=0, dtype=np.float64) for i in range(0, len(rows), _BLOCK))
        return np.zeros(len(rows), np.int32), _unit(np.asarray(total)[None])
    chosen = np.sort(np.random.default_rng((seed, int(rows[0]))).permutation(len(rows))[: parts * _TRAIN])
    centres = kmeans(vectors(rows[chosen]), parts, seed)
    return _nearest(rows, centres, vectors), centres


def _nearest(rows: np.ndarray, centres: np.ndarray, vectors: Vectors) -> np.ndarray:
    found = np.empty(len(rows), np.int32)
    for first in range(0, len(rows), _BLOCK):
        found[first : first + _BLOCK] = nearest(vectors(rows[first : first + _BLOCK]), centres)
    return found


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
