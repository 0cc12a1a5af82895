"""kNN scores, feature extraction and embeddings against direct computation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from swav_platform.config import ImagePolicy
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.errors import UserError
from swav_platform.evaluation import features as module
from swav_platform.evaluation.features import Features, batches, colour_histogram, features, subset, unit
from swav_platform.evaluation.knn import _check_side, _warn_of_shared_shards, knn_top1
from tests.makers import encoded, write_tar


def rows(values: np.ndarray, labels: list[str]) -> Features:
    return Features(unit(values.astype(np.float32)), list(labels), Counter())


def test_votes_are_weighted_by_cosine() -> None:
    bank = rows(np.array([[1, 0], [0.6, 0.8], [0.6, 0.81]]), ["near", "far", "far"])
    query = rows(np.array([[1, 0.0]]), ["near"])
    assert knn_top1(bank, query, k=3, temperature=0.1) == 100.0, "one near neighbour has more weight than two far ones"
    assert knn_top1(bank, query, k=3, temperature=100.0) == 0.0, "without weights the majority wins"


def test_matches_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    bank, query = rows(rng.normal(size=(200, 8)), list("abcd") * 50), rows(rng.normal(size=(60, 8)), list("abc") * 20)
    right = 0
    for value, label in zip(query.values, query.labels, strict=True):
        votes: dict[str, float] = {}
        for i in np.argsort(-(bank.values @ value))[:7]:
            votes[str(bank.labels[i])] = votes.get(str(bank.labels[i]), 0) + float(np.exp(bank.values[i] @ value / 0.1))
        right += max(votes, key=lambda name: votes[name]) == label
    assert knn_top1(bank, query, k=7, temperature=0.1) == 100 * right / 60


def test_a_small_temperature_does_not_overflow() -> None:
    bank, query = rows(np.eye(2), ["a", "b"]), rows(np.array([[0.9, 0.1]]), ["a"])
    assert knn_top1(bank, query, k=2, temperature=1e-4) == 100.0


def test_rows_without_a_label_neither_vote_nor_count() -> None:
    bank, query = rows(np.array([[1, 0], [0, 1]]), ["near", "far"]), rows(np.array([[0.8, 0.6], [1, 0]]), ["near", "near"])
    bank.labels[0] = query.labels[1] = None
    assert knn_top1(bank, query, k=1, temperature=0.1) == 0.0, "the nearest labelled row is far"
    query.labels[0] = "far"
    assert knn_top1(bank, query, k=1, temperature=0.1) == 100.0


def test_errors_distinguish_unreadable_images_from_missing_labels() -> None:
    with pytest.raises(UserError, match=r"--bank a\.tar.*3 truncated"):
        _check_side("bank", "a.tar", "folder", Features(np.zeros((0, 1), np.float32), [], Counter(truncated=3)))
    unlabelled = Features(np.ones((1, 1), np.float32), [None], Counter())
    with pytest.raises(UserError, match=r"--query b\.tar.*'cls'"):
        _check_side("query", "b.tar", "cls", unlabelled)


def test_batches_end_at_a_count_or_at_a_number_of_bytes(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(sorted(map(str, shards.glob("*.tar"))), tmp_path / "index")
    index = Index.open(tmp_path / "index")

    def sizes(size: int = 256) -> list[int]:
        found = list(batches(index, range(index.samples), ImagePolicy(), size))
        assert [line.number for batch in found for line in batch.lines] == list(range(160))
        return [len(batch.images) for batch in found]

    assert sizes() == [160]
    assert sizes(100) == [100, 60]
    monkeypatch.setattr(module, "READ_BYTES", 5_000)
    assert sizes() == [160]
    monkeypatch.setattr(module, "BATCH_BYTES", 10 * 40 * 48 * 3)
    several = sizes()
    assert len(several) > 10
    assert max(several) <= 10


def test_no_images_make_no_batches(shards: Path, tmp_path: Path) -> None:
    build_index(sorted(map(str, shards.glob("*.tar"))), tmp_path / "index")
    assert list(batches(Index.open(tmp_path / "index"), [], ImagePolicy())) == []


def test_features_keep_order_and_count_refused_images(shards: Path, tmp_path: Path) -> None:
    bad = write_tar(tmp_path / "bad.tar", [("a/0.jpg", b"not an image at all")])
    build_index([*map(str, sorted(shards.glob("*.tar"))), bad], tmp_path / "index", label="folder")
    index = Index.open(tmp_path / "index")
    found = features(index, range(index.samples), {"colour": colour_histogram}, ImagePolicy())["colour"]
    assert found.refused == {"not_an_image": 1}
    assert found.values.shape == (160, 512)
    assert found.labels == [f"group{i % 4}" for i in range(80)] * 2
    assert knn_top1(found, found, k=1, temperature=0.1) == 100.0


def test_shards_on_both_sides_are_warned_about(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = sorted(map(str, shards.glob("*.tar")))[:2]
    for name, files in (("one", [first]), ("two", [second]), ("both", [first, second])):
        build_index(files, tmp_path / name)
    one, two, both = (Index.open(tmp_path / name) for name in ("one", "two", "both"))
    _warn_of_shared_shards(one, two)
    assert not caplog.records
    _warn_of_shared_shards(one, both)
    (warning,) = caplog.messages
    assert first in warning
    assert second not in warning


def test_subsets_are_drawn_by_seed(shards: Path, tmp_path: Path) -> None:
    build_index(sorted(map(str, shards.glob("*.tar"))), tmp_path / "index")
    index = Index.open(tmp_path / "index")
    some = subset(index, 50, seed=1)
    assert some == sorted(set(some))
    assert len(some) == 50
    assert some == subset(index, 50, seed=1) != subset(index, 50, seed=2)
    assert subset(index, None, seed=1) == list(range(160)) == subset(index, 1000, seed=1)


def test_colour_histogram_ignores_positions() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(colour_histogram([image]), colour_histogram([image[::-1, ::-1]]))
    assert np.isclose((colour_histogram([image]) ** 2).sum(), 1)


def test_report_is_one_self_contained_page(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from swav_platform.data.sets.read import open_set
    from swav_platform.evaluation.report import write_report

    thumbnail = encoded(Image.new("RGB", (8, 8), "red"))
    columns = {"sample": [0, 1, 2], "cluster": [3, 3, 1], "score": [0.5, 0.9, 0.7], "thumbnail": [thumbnail] * 3}
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0] * 6, pa.float32()), 2)
    pq.write_table(pa.table({**columns, "embedding": vectors}), tmp_path / "embeddings.parquet")
    write_report(
        tmp_path / "report.html",
        title="a <b>",
        facts={"x": 1},
        scores={"SwAV": 60.0, "random": 30.0},
        losses=[4.0, 3.0, 2.5],
        prototypes=12,
        embeddings=open_set(tmp_path),
        pages={"outliers": "outliers.html"},
        explorer="swav serve 'a b'",
    )
    page = (tmp_path / "report.html").read_text()
    assert '<a href="outliers.html">outliers</a>' in page
    assert "a &lt;b&gt;" in page
    assert "2 of 12 prototypes" in page
    assert page.count("data:image/jpeg") == 3
    assert 'src="http' not in page
    assert "<script" not in page
