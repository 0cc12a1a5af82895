"""How well clusters agree with labels: those of the prototypes, and k-means on frozen features."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score


def agreement(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """NMI, ARI and purity in percent of clusters int [n] and labels int [n]; `used` counts clusters that have a member."""
    _, clusters = np.unique(clusters, return_inverse=True)
    table = np.zeros((clusters.max() + 1, labels.max() + 1), np.int64)
    np.add.at(table, (clusters, labels), 1)
    return {
        "nmi": 100 * float(normalized_mutual_info_score(labels, clusters)),
        "ari": 100 * float(adjusted_rand_score(labels, clusters)),
        "purity": 100 * float(table.max(1).sum() / len(labels)),
        "used": len(table),
    }


def kmeans(values: np.ndarray, labels: np.ndarray, clusters: int, seed: int = 0) -> dict[str, float]:
    """`agreement` of k-means (Lloyd, k-means++, the best of 3 starts) on `values` [n, D], usually of unit length."""
    found = KMeans(clusters, n_init=3, random_state=seed).fit_predict(values)
    return agreement(found, labels)
