"""Near-duplicates, curation and the map, and their way back into `swav index`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from swav_platform.cli.main import run
from swav_platform.data.index.balance import Weights
from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.sets.read import EmbeddingSet
from swav_platform.neighbours.build import build
from swav_platform.neighbours.curate import curate
from swav_platform.neighbours.duplicates import find_duplicates
from swav_platform.neighbours.hierarchy import levels, quotas, water_fill
from swav_platform.neighbours.index import NeighbourIndex, open_neighbours
from tests.neighbours.conftest import DIM, blobs, write_set


def opened(made: EmbeddingSet, folder: Path, excluded: Exclusions | None = None) -> NeighbourIndex:
    build(made, folder)
    return open_neighbours(folder, excluded=excluded)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSet:
    """2,000 vectors far from each other; 1,900 … 1,999 are near-copies of 0 … 99, and 50 has the bytes of 60."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(2000, DIM)).astype(np.float32)
    vectors[1900:] = vectors[:100] + 0.1 * rng.normal(size=(100, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    content = [7 if n in (50, 60) else n + 1000 for n in range(2000)]
    width = [100 if n >= 1900 else 10 for n in range(2000)]
    clusters = (vectors @ rng.normal(size=(DIM, 12))).argmax(1).astype(np.int32)  # copies may be in other clusters
    folder = tmp_path_factory.mktemp("copied") / "embeddings"
    return write_set(folder, vectors, clusters, content=content, width=width, height=width)


def test_duplicates(copied: EmbeddingSet, tmp_path: Path) -> None:
    index = opened(copied, tmp_path)
    found = find_duplicates(index, 0.95)
    vectors = np.concatenate(list(copied.vectors()))
    first, second = np.nonzero(np.triu(vectors @ vectors.T >= 0.95, 1))
    group_of = {int(row): number for number, rows in enumerate(found.groups) for row in rows}
    together = [group_of.get(a, -1) == group_of.get(b, -2) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert np.mean(together) >= 0.99
    assert group_of[50] == group_of[60]
    assert len(found.groups) <= 101
    assert all(rows[0] >= 1900 for rows in found.groups if len(rows) == 2), "the larger image is kept"
    kept = find_duplicates(index, 0.95, "first")
    assert all(rows[0] < 100 for rows in kept.groups)


def test_excluded_samples_are_in_no_group(copied: EmbeddingSet, tmp_path: Path) -> None:
    index = opened(copied, tmp_path, Exclusions([(None, "00005")]))
    assert 5 not in np.concatenate(list(find_duplicates(index, 0.95).groups))
    assert curate(index).weights[5] == 0


def test_a_collapsed_set_needs_little_memory(tmp_path: Path) -> None:
    vectors, clusters = blobs(3000, 1, 0.001)
    found = find_duplicates(opened(write_set(tmp_path / "set", vectors, clusters), tmp_path / "index"), 0.9)
    assert [len(rows) for rows in found.groups] == [3000]
    assert found.pairs >= 3000 * 2999 // 2


def test_water_fill() -> None:
    assert water_fill(np.array([1, 10, 10]), 11).tolist() == [1, 5, 5]
    assert water_fill(np.array([1, 10, 10]), 12).tolist() == [1, 5, 6]
    assert water_fill(np.array([3, 4]), 100).tolist() == [3, 4]
    assert water_fill(np.array([0, 4]), 2).tolist() == [0, 2]


def test_quotas_take_from_what_is_frequent() -> None:
    rng = np.random.default_rng(0)
    centres, _ = blobs(400, 40, 0.2, seed=1)
    sizes = rng.integers(1, 200, 400)
    parents = levels(centres)
    assert next(int(level.max()) + 1 for level in parents) <= 50
    given = quotas(sizes, parents, 1000)
    assert given.sum() == 1000
    assert (given <= sizes).all()
    by_parent = np.bincount(parents[0], weights=given)
    assert by_parent.std() < np.bincount(parents[0], weights=sizes * 1000 / sizes.sum()).std()


def test_curation_balances_and_finds_outliers(tmp_path: Path) -> None:
    vectors, clusters = blobs(3000, 30, 0.15, seed=4)
    kept = np.concatenate([np.flatnonzero(clusters == 0), *(np.flatnonzero(clusters == c)[:8] for c in range(1, 30))])
    strange = np.random.default_rng(5).normal(size=(2, DIM)).astype(np.float32)
    strange /= np.linalg.norm(strange, axis=1, keepdims=True)
    vectors = np.concatenate([vectors[kept], strange])
    clusters = np.concatenate([clusters[kept], [0, 1]]).astype(np.int32)
    index = opened(write_set(tmp_path / "set", vectors, clusters), tmp_path / "index")
    found = curate(index)
    assert found.weights[clusters == 0].mean() < found.weights[clusters == 5].mean()
    assert set(found.outliers.tolist()) >= {len(vectors) - 2, len(vectors) - 1}
    few = curate(index, keep=100)
    assert few.weights.sum() == 100
    assert set(few.weights.tolist()) == {0.0, 1.0}
    assert (few.weights[clusters == 0]).sum() < 60


def test_commands(
    copied: EmbeddingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place = str(copied.place)

    def result(*arguments: str) -> dict[str, object]:
        assert run(["neighbours", *arguments, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))

    built = result("build", place, "--recall", "0.98")
    assert set(built) >= {"samples", "dim", "seconds", "bytes", "recall_at_10", "queries_per_second"}
    found = result("duplicates", place, "--threshold", "0.95", "--html", "d.html")
    assert (found["threshold"], found["out"]) == (0.95, "duplicates.txt")
    assert len(Exclusions.of_file("duplicates.txt")) == found["samples_to_drop"] >= 99
    assert "100×100" in Path("d.html").read_text()
    stored = pq.read_table(Path(place) / "duplicates.parquet")
    assert stored["group"].to_numpy().max() + 1 == found["groups"]
    assert stored["similarity"].to_numpy().min() > 0.8 or 50 in stored["sample"].to_pylist()
    chosen = result("curate", place, "--exclude", "duplicates.txt", "--outliers", "o.txt", "--html", "o.html")
    assert chosen["samples"] == 2000
    assert pq.read_table(Path(place) / "outliers.parquet").num_rows == chosen["outliers"]
    assert Weights.of_file("weights.parquet")
    assert pq.read_table("weights.parquet").num_rows == 2000 - int(str(found["samples_to_drop"]))
    drawn = result("map", place, "--exclude", "duplicates.txt")
    table = pq.read_table(Path(place) / "map.parquet")
    assert drawn["samples"] == table.num_rows == 2000 - int(str(found["samples_to_drop"]))
    near = table["neighbors"][0].as_py()
    assert len(near["ids"]) == len(near["distances"]) == 10
    assert 0 not in near["ids"]
    assert max(near["ids"]) < table.num_rows
    assert run(["neighbours", "duplicates", "nowhere", "--json"]) == 2
    assert run(["neighbours", "curate", place, "--to", "weights.csv"]) == 2
