"""The part of the demo after `swav embed`: the neighbour index, duplicates, a balanced choice, the map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swav_platform.data.sets.read import EmbeddingSet

THRESHOLD = 0.9995  # cosine of near-duplicates; after minutes of training, much that differs is at 0.99


def search_set(embeddings: EmbeddingSet, folder: Path, place: Path) -> dict[str, Any]:
    """Does what `swav neighbours build, duplicates, curate, map` do. folder: of the set; place: of lists and pages.

    Returns near_duplicates (images that others repeat), outliers, recall_at_10, and pages: names and files.
    """
    from swav_platform.neighbours.build import build
    from swav_platform.neighbours.curate import curate, store_outliers, write_outliers, write_weights
    from swav_platform.neighbours.duplicates import find_duplicates, write_exclusions, write_groups, write_page
    from swav_platform.neighbours.index import open_neighbours
    from swav_platform.neighbours.map import write_map

    report = build(embeddings, folder.with_name(f"{folder.name}-neighbours"))
    index = open_neighbours(folder.with_name(f"{folder.name}-neighbours"))
    alike = find_duplicates(index, THRESHOLD)
    write_exclusions(index, alike.dropped, place / "duplicates.txt")
    write_groups(index, alike, folder / "duplicates.parquet")
    write_page(embeddings, index, alike, THRESHOLD, place / "duplicates.html")
    chosen = curate(index)
    write_weights(index, chosen.weights, place / "weights.parquet")
    store_outliers(index, chosen, folder / "outliers.parquet")
    write_outliers(embeddings, index, chosen, place / "outliers.html")
    write_map(index, folder / "map.parquet")
    return {
        "near_duplicates": len(alike.dropped),
        "outliers": len(chosen.outliers),
        "recall_at_10": report["recall_at_10"],
        "pages": {"near-duplicates": "duplicates.html", "outliers": "outliers.html"},
    }
