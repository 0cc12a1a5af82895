"""Retrieval of images with the same label by cosine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALLS = (1, 5, 10, 100)
_BLOCK = 256  # queries


def retrieval(
    bank: tuple[np.ndarray, np.ndarray], query: tuple[np.ndarray, np.ndarray], at: Sequence[int] = RECALLS
) -> dict[str, float]:
    """mAP over the whole ranking, and recall@k: the share of queries with a match among the k nearest. In percent.

    bank, query: unit-length features [n, D] and labels [n]. Queries whose label is not in the bank do not count.
    """
    known = np.isin(query[1], bank[1])
    values, labels = query[0][known], query[1][known]
    precisions, recalls = [], dict.fromkeys(at, 0)
    for start in range(0, len(values), _BLOCK):
        order = np.argsort(-(values[start : start + _BLOCK] @ bank[0].T), axis=1, kind="stable")
        right = bank[1][order] == labels[start : start + _BLOCK, None]
        hits = right.cumsum(1)
        ranks = np.arange(1, right.shape[1] + 1)
        precisions.append((hits / ranks * right).sum(1) / right.sum(1))
        for k in at:
            recalls[k] += int((hits[:, min(k, right.shape[1]) - 1] > 0).sum())
    mean = float(np.concatenate(precisions).mean()) if precisions else 0.0
    return {"map": 100 * mean, **{f"recall_at_{k}": 100 * count / max(1, len(values)) for k, count in recalls.items()}}
