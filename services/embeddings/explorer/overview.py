"""Numbers of each cluster, by which the page orders its contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Order = Literal["size", "tightness", "entropy"]


@dataclass(frozen=True)
class Overview:
    """Per cluster: float32 [K], NaN for a cluster without samples.

    tightness: mean cosine of the samples to the prototype. spread: its standard deviation. entropy: of the samples' labels, or of
    their shards if the set has no labels, in bits: 0 if all have the same.
    """

    tightness: np.ndarray
    spread: np.ndarray
    entropy: np.ndarray

    def order(self, by: Order, sizes: np.ndarray) -> np.ndarray:
        """Clusters, those first that have most of it. Empty clusters come last."""
        values = sizes.astype(np.float64) if by == "size" else getattr(self, by).astype(np.float64)
        return np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")


def overview(clusters: np.ndarray, scores: np.ndarray, kinds: Sequence[object], count: int) -> Overview:
    """clusters: int [N], -1 for none. scores: float32 [N]. kinds: label or shard of each sample. count: number of clusters."""
    of = np.flatnonzero(clusters >= 0)
    own, score = clusters[of], scores[of].astype(np.float64)
    sizes = np.bincount(own, minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(own, score, count) / sizes
        square = np.bincount(own, score * score, count) / sizes
        spread = np.sqrt(np.maximum(square - mean * mean, 0))
    return Overview(*(value.astype(np.float32) for value in (mean, spread, _entropy(own, of, kinds, sizes))))


def _entropy(own: np.ndarray, of: np.ndarray, kinds: Sequence[object], sizes: np.ndarray) -> np.ndarray:
    """Bits, float64 [K], of the kinds in each cluster."""
    _, number = np.unique(np.asarray(kinds, dtype=object)[of].astype(str), return_inverse=True)
    pairs, counts = np.unique(own.astype(np.int64) * (number.max(initial=0) + 1) + number, return_counts=True)
    cluster = pairs // (number.max(initial=0) + 1)
    share = counts / sizes[cluster]
    found = np.bincount(cluster, -share * np.log2(share), len(sizes))
    return np.where(sizes > 0, np.maximum(found, 0), np.nan)
