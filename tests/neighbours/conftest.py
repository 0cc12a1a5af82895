"""Embedding sets of made-up vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from swav_platform.data.index.lookup import IndexLine
from swav_platform.data.sets.layout import Recipe
from swav_platform.data.sets.read import EmbeddingSet, open_set
from swav_platform.data.sets.write import begin, finish, put_part
from swav_platform.evaluation.parts import Prepared, part_table
from swav_platform.failures import LogWaits
from swav_platform.runs.storage import storage_of

DIM = 32

MakeSet = Callable[..., EmbeddingSet]


def write_set(folder: Path, vectors: np.ndarray, clusters: np.ndarray, **more: list[int]) -> EmbeddingSet:
    """A set of unit-length vectors in two shards. more: content, width, height of each sample."""
    recipe = Recipe("model", "index", len(vectors), vectors.shape[1], {"size": 32})
    storage = storage_of(folder)
    begin(storage, recipe)
    reports = []
    for number, part in enumerate(recipe.parts):
        lines = [
            IndexLine(n, f"{n:05d}", f"{'ab'[n % 2]}.tar", 0, 1, "jpg", f"label{n % 3}", name=f"{'ab'[n % 2]}.tar") for n in part
        ]
        numbers = [[int(more[name][n]) if name in more else 0 for name in ("content", "width", "height")] for n in part]
        prepared = [Prepared("ok", content=content, width=width, height=height) for content, width, height in numbers]
        span = slice(part.start, part.stop)
        table = part_table(recipe, lines, prepared, vectors[span], clusters[span], np.zeros(len(part)))
        reports.append(put_part(storage, number, table, None, 10.0, LogWaits()))
    finish(storage, recipe, reports)
    return open_set(folder)


def blobs(n: int, groups: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 [n, DIM] of unit length around centres, and the number of the centre of each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, DIM))
    own = rng.integers(0, groups, n)
    values = centres[own] + spread * rng.normal(size=(n, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32), own.astype(np.int32)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSet:
    """4,000 vectors in 20 clusters; one cluster is empty of others and one has half of all."""
    vectors, clusters = blobs(4000, 20, 0.7)
    return write_set(tmp_path_factory.mktemp("made") / "embeddings", vectors, clusters)
