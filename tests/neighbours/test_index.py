"""The neighbour index: recall, conditions, exclusions, files that do not fit, sets without clusters or without differences."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.sets.read import EmbeddingSet
from swav_platform.errors import UsageError, UserError
from swav_platform.neighbours.build import build
from swav_platform.neighbours.exact import exact_search
from swav_platform.neighbours.index import NeighbourIndex, open_neighbours
from swav_platform.neighbours.search import Where
from tests.neighbours.conftest import DIM, blobs, write_set


@pytest.fixture(scope="module")
def folder(made: EmbeddingSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("index")
    report = build(made, place, target=0.98)
    assert report["samples"] == 4000
    assert report["recall_at_10"] >= 0.98
    assert report["bytes"] == 4000 * DIM
    assert not (place / "unordered.f16").exists()
    return place


@pytest.fixture(scope="module")
def index(folder: Path, made: EmbeddingSet) -> NeighbourIndex:
    return open_neighbours(folder, of_set=made.digest)


def test_a_stored_vector_finds_itself_and_what_exact_search_finds(index: NeighbourIndex, made: EmbeddingSet) -> None:
    vectors = np.concatenate(list(made.vectors()))
    found = index.search(vectors[:50], 10)
    assert [hits[0].sample for hits in found] == list(range(50))
    assert all(hits[0].score == pytest.approx(1, abs=1e-5) for hits in found)
    truth = np.argsort(-(vectors[:50] @ vectors.T), axis=1, kind="stable")[:, :10]
    shared = [len({hit.sample for hit in hits} & set(true.tolist())) for hits, true in zip(found, truth, strict=True)]
    assert np.mean(shared) >= 9.5
    np.testing.assert_array_equal(exact_search(index.vectors, vectors[:50], 10)[1], truth)
    np.testing.assert_allclose(index.vector(7), vectors[7], atol=1e-6)


def test_conditions(index: NeighbourIndex) -> None:
    query = index.vector(11)[None]
    for where, kept in (
        (Where(label="label1"), lambda hit: hit.label == "label1"),
        (Where(shard="b.tar"), lambda hit: hit.shard == "b.tar"),
        (Where(key_prefix="0012"), lambda hit: hit.key.startswith("0012")),
        (Where(cluster=3), lambda hit: hit.cluster == 3),
        (Where(without=[11]), lambda hit: hit.sample != 11),
        (Where(label="label1", shard="b.tar", without=[13]), lambda hit: hit.label == "label1" and hit.sample != 13),
    ):
        [hits] = index.search(query, 10, where)
        assert len(hits) == 10
        assert all(kept(hit) for hit in hits), where
    assert index.search(query, 5, Where(label="no such label")) == [[]]
    assert len(index.search(query, 30, Where(key_prefix="0012"))[0]) == 10


def test_conditions_on_many_rows_search_the_lists(index: NeighbourIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = index.search(index.vector(11)[None], 10, Where(label="label1"))
    monkeypatch.setattr("swav_platform.neighbours.index.FEW", 10)
    found = index.search(index.vector(11)[None], 10, Where(label="label1"))
    assert len({hit.sample for hit in found[0]} & {hit.sample for hit in expected[0]}) >= 9
    assert len(index.search(index.vector(11)[None], 10, Where(cluster=3))[0]) == 10


def test_excluded_samples_are_not_found(folder: Path, index: NeighbourIndex) -> None:
    nearest = index.search(index.vector(11)[None], 2)[0][1]
    fewer = open_neighbours(folder, excluded=Exclusions([(nearest.shard, nearest.key), (None, "00012")]))
    assert nearest.sample not in {hit.sample for hit in fewer.search(index.vector(11)[None], 50)[0]}
    for sample in (nearest.sample, 12, 10**9):
        with pytest.raises(KeyError):
            fewer.vector(sample)


def test_files_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="swav neighbours build"):
        open_neighbours(tmp_path)
    with pytest.raises(UserError, match="another set"):
        open_neighbours(folder, of_set="0123")
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "lists.faiss").write_bytes((folder / "lists.faiss").read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        open_neighbours(tmp_path / "cut")


def test_a_folder_with_other_files_is_left_alone(made: EmbeddingSet, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        build(made, tmp_path)


def test_a_collapsed_set_answers_right_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors, _ = blobs(500, 1, 0.002)
    made = write_set(tmp_path / "set", vectors, np.zeros(500, np.int32))
    with caplog.at_level(logging.WARNING, "swav"):
        report = build(made, tmp_path / "index")
    assert "nearly the same" in caplog.text
    assert report["recall_at_10"] >= 0.98
    index = open_neighbours(tmp_path / "index")
    stored = np.concatenate(list(made.vectors()))
    truth = np.sort(stored[:20] @ stored.T, axis=1)[:, ::-1][:, :10]
    found = [[hit.score for hit in hits] for hits in index.search(stored[:20], 10)]
    np.testing.assert_allclose(found, truth, atol=2e-6)


@pytest.mark.parametrize("codec", ["sq8", "pq"])
def test_a_set_without_clusters(tmp_path: Path, codec: str) -> None:
    vectors, _ = blobs(1500, 12, 0.6)
    made = write_set(tmp_path / "set", vectors, np.full(1500, -1, np.int32))
    report = build(made, tmp_path / "index", codec=codec)
    assert report["recall_at_10"] >= 0.985
    assert report["bytes"] == 1500 * (DIM if codec == "sq8" else DIM // 4)


def test_very_few_samples(tmp_path: Path) -> None:
    made = write_set(tmp_path / "set", np.eye(3, DIM, dtype=np.float32), np.array([0, 1, 2], np.int32))
    build(made, tmp_path / "index")
    [hits] = open_neighbours(tmp_path / "index").search(np.eye(1, DIM, dtype=np.float32), 10)
    assert hits[0].sample == 0
    assert len(hits) == 3
