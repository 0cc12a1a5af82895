"""Chooses what to learn from: weights that balance what the images show, and outliers to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import replacing, write_text
from swav_platform.data.sets.read import EmbeddingSet
from swav_platform.neighbours.hierarchy import levels, quotas
from swav_platform.neighbours.index import NeighbourIndex
from swav_platform.neighbours.page import Card, page
from swav_platform.neighbours.pairs import list_centres

FAR = -3.0
"""Robust standard deviations from the median below which both measures of an outlier are."""

MOST_OUTLIERS = 0.01  # of the set
_NEAREST = 10  # neighbours that measure density
_BLOCK = 8192  # queries at once
_ON_A_PAGE = 300


@dataclass(frozen=True)
class Curated:
    """weights: float64 [n], 0 for rows that are not to be used. outliers: rows, the strangest first, with their measures."""

    weights: np.ndarray
    levels: list[int]  # clusters of each level, from the lowest up
    outliers: np.ndarray  # int64 [m]
    nearness: np.ndarray  # float32 [n]: cosine to the nearest cluster
    density: np.ndarray  # float32 [n]: mean cosine to the nearest samples


def curate(
    index: NeighbourIndex,
    keep: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curated:
    """Weights by hierarchical balanced sampling over the lists of an index, and outliers. progress(done, total): samples.

    keep: so many samples get weight 1 and the others 0. Without it, a weight is the chance of being among a balanced half of the set.
    """
    usable = np.ones(index.samples, bool) if index.banned is None else ~index.banned
    centres = list_centres(index.vectors)
    sizes = np.bincount(index.vectors.lists[usable], minlength=len(centres))
    parents = levels(centres, seed)
    count = int(usable.sum())
    given = quotas(sizes, parents, count // 2 if keep is None else keep)
    if keep is None:
        chance = np.maximum(given, 0.5) / np.maximum(sizes, 1)
        weights = np.where(usable, chance[index.vectors.lists], 0.0)
    else:
        weights = _chosen(index.vectors.lists, usable, given, seed)
    nearness, density = _measures(index, centres, progress)
    return Curated(
        weights, [len(centres), *(int(p.max()) + 1 for p in parents)], _outliers(nearness, density, usable), nearness, density
    )


def _chosen(lists: np.ndarray, usable: np.ndarray, given: np.ndarray, seed: int) -> np.ndarray:
    """float64 [n]: 1 for so many rows of each list, drawn at random, and 0 for the others."""
    chance = np.random.default_rng(seed).random(len(lists))
    order = np.lexsort((chance, ~usable, lists))
    place = np.arange(len(order)) - np.searchsorted(lists[order], lists[order])
    weights = np.zeros(len(lists))
    weights[order] = place < given[lists[order]]
    return weights


def _measures(index: NeighbourIndex, centres: np.ndarray, progress: Callable[[int, int], None]) -> tuple[np.ndarray, np.ndarray]:
    nearness, density = np.empty(index.samples, np.float32), np.empty(index.samples, np.float32)
    k = min(_NEAREST + 1, index.samples)
    for first in range(0, index.samples, _BLOCK):
        rows = np.arange(first, min(first + _BLOCK, index.samples))
        queries = index.vectors.rows(rows)
        nearness[rows] = faiss.knn(queries, centres, 1, metric=faiss.METRIC_INNER_PRODUCT)[0][:, 0]
        scores, found = index.search_rows(queries, k)
        others = (found >= 0) & (found != rows[:, None])
        density[rows] = np.where(others, scores, 0).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
        progress(int(rows[-1]) + 1, index.samples)
    return nearness, density


def _outliers(nearness: np.ndarray, density: np.ndarray, usable: np.ndarray) -> np.ndarray:
    spread = [_robust(values, usable) for values in (nearness, density)]
    rows = np.flatnonzero(usable & (spread[0] < FAR) & (spread[1] < FAR))
    order = rows[np.argsort((spread[0] + spread[1])[rows], kind="stable")]
    return order[: max(1, round(MOST_OUTLIERS * len(nearness)))]


def _robust(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Distances from the median in units of the standard deviation that the median distance implies."""
    middle = np.median(values[usable]) if usable.any() else 0.0
    scale = 1.4826 * np.median(np.abs(values[usable] - middle)) if usable.any() else 1.0
    found: np.ndarray = (values - middle) / max(scale, 1e-6)
    return found


def write_weights(index: NeighbourIndex, weights: np.ndarray, path: Path) -> None:
    """Writes shard, key and weight of all samples that are not excluded, for `swav index --weights`."""
    usable = np.arange(index.samples) if index.banned is None else np.flatnonzero(~index.banned)
    names = index.rows.select(["shard", "key"]).take(pa.array(usable))
    with replacing(path) as aside:
        pq.write_table(names.append_column("weight", pa.array(weights[usable])), aside)


def store_outliers(index: NeighbourIndex, found: Curated, path: Path) -> None:
    """Writes sample and score (mean cosine to the nearest images) of the outliers, the strangest first, for viewers."""
    sample = index.rows["sample"].to_numpy()[found.outliers]
    with replacing(path) as aside:
        pq.write_table(pa.table({"sample": sample, "score": found.density[found.outliers]}), aside)


def write_outliers(embeddings: EmbeddingSet, index: NeighbourIndex, found: Curated, path: Path) -> None:
    """Writes an HTML page with the strangest images."""
    rows = found.outliers[:_ON_A_PAGE]
    told = index.rows.take(pa.array(rows)).to_pylist()
    pictures = embeddings.pictures([line["sample"] for line in told])
    cards = [
        Card(pictures.get(line["sample"]), line["key"], f"{line['shard']} · {found.nearness[row]:.2f}, {found.density[row]:.2f}")
        for row, line in zip(rows.tolist(), told, strict=True)
    ]
    intro = "Images far from every cluster and from all other images: cosines to the nearest cluster and to the nearest images."
    write_text(path, page("Outliers", intro, [(f"{len(found.outliers):,} images", cards)]))
