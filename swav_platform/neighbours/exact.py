"""Exact search, and the recall of another one against it."""

from __future__ import annotations

import faiss
import numpy as np

from swav_platform.neighbours.stored import StoredVectors

_BLOCK = 65_536  # vectors in memory
_TIE = 1e-6  # cosines that differ by less are equal


def exact_search(vectors: StoredVectors, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines float32 [q, k] and rows int64 [q, k] of the nearest rows, best first; -1 where there are fewer."""
    order = vectors.order
    scores = np.full((len(queries), k), -2.0, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    for first in range(0, len(vectors), _BLOCK):
        block = vectors.lines(first, min(first + _BLOCK, len(vectors)))
        here, at = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        both, rows = np.concatenate([scores, here], 1), np.concatenate([found, order[at + first]], 1)
        best = np.argsort(-both, axis=1, kind="stable")[:, :k]
        scores, found = np.take_along_axis(both, best, 1), np.take_along_axis(rows, best, 1)
    vectors.release()
    return scores, found


def recalls(scores: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """float64 [q]: the share of the exact answers to each query that a search found; both cosines [q, k].

    An answer as good as the exact one counts.
    """
    limit = exact[:, -1:] - _TIE
    found: np.ndarray = (scores >= limit).sum(axis=1).clip(max=exact.shape[1]) / exact.shape[1]
    return found
