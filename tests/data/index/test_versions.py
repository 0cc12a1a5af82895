"""Versions of an index: exclusions, balancing, verification, wids lists; and mixed data sets."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swav_platform.config import Data
from swav_platform.data.datasets import check_one_pass, open_or_build, plan_of
from swav_platform.data.index.balance import Weights
from swav_platform.data.index.build import build_index
from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.verify import verify
from swav_platform.data.index.wids import compare, shards_of_wids
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.order.plan import Plan
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.errors import UsageError


@pytest.fixture
def tars(make_tar: Any) -> list[str]:
    return [make_tar(f"{n}.tar", [(f"{n}-{i}.jpg", b"%d" % i) for i in range(10)]) for n in range(3)]


def keys(index: Index) -> list[str]:
    return [line.key for line in index.lines(range(index.samples))]


def test_excluded_samples_stay_excluded(tars: list[str], tmp_path: Path) -> None:
    build_index(tars, tmp_path / "index")
    before = Index.open(tmp_path / "index")
    (tmp_path / "out.txt").write_text("0-3\n2.tar\t2-5\n1.tar\t0-4\n")  # the last line names a sample of another shard
    report = build_index(tars, tmp_path / "index", exclude=Exclusions.of_file(tmp_path / "out.txt"))
    assert (report.samples, report.shards_read, report.skipped) == (28, 0, {"excluded": 2})
    assert report.examples == {"excluded": ["0-3", "2-5"]}
    again = build_index([*tars[:2], tars[2]], tmp_path / "index")
    assert (again.digest, again.skipped) == (report.digest, {"excluded": 2})
    os.utime(tars[0])
    assert build_index(tars, tmp_path / "index").digest == report.digest
    assert set(keys(before)) - set(keys(Index.open(tmp_path / "index"))) == {"0-3", "2-5"}

    resumed = Index.open(before.path)  # as a run does that started with the old version
    found = read_samples(resumed.lines(range(30)))
    assert resumed.digest == before.digest
    failures = {number: data for number, data in found.items() if isinstance(data, ReadFailure)}
    assert {number: failure.outcome for number, failure in failures.items()} == {3: Outcome.EXCLUDED, 25: Outcome.EXCLUDED}


def test_exclusion_lists(tmp_path: Path) -> None:
    pq.write_table(pa.table({"shard": ["s3://b/x.tar", None], "key": ["a", "b\tc"]}), tmp_path / "x.parquet")
    found = Exclusions.of_file(tmp_path / "x.parquet")
    taken = found.on(["s3://b/x.tar", "/elsewhere/x.tar", "y.tar"])
    assert ("s3://b/x.tar", "a") in taken
    assert ("/elsewhere/x.tar", "a") not in taken
    assert ("y.tar", "a") not in taken
    assert ("y.tar", "b\tc") in taken
    pq.write_table(pa.table({"key": [7]}), tmp_path / "numbers.parquet")
    assert ("y.tar", "7") in Exclusions.of_file(tmp_path / "numbers.parquet").on(["y.tar"])
    pq.write_table(pa.table({"key": ["a", None]}), tmp_path / "hole.parquet")
    with pytest.raises(UsageError, match="line 2 has no key"):
        Exclusions.of_file(tmp_path / "hole.parquet")
    for name, text in (("gone.txt", None), ("empty.txt", "\n\n")):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match="Exclusion list"):
            Exclusions.of_file(tmp_path / name)


def test_an_index_with_all_samples_excluded_says_why(tars: list[str], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="only images on the exclusion list"):
        build_index(tars[:1], tmp_path / "index", exclude=Exclusions((None, f"0-{i}") for i in range(10)))


def test_balanced_sampling(tars: list[str], tmp_path: Path) -> None:
    lines = ["key,cluster", *(f"{n}-{i},{0 if n < 2 else 1 + i // 5}" for n in range(3) for i in range(10))]
    (tmp_path / "clusters.csv").write_text("\n".join(lines))  # clusters of 20, 5 and 5 images
    base = build_index(tars, tmp_path / "index")
    report = build_index(tars, tmp_path / "index", weights=Weights.of_file(tmp_path / "clusters.csv"))
    assert (report.samples, report.shards_read) == (20 + 20 + 20, 0)
    index = Index.open(tmp_path / "index")
    assert Counter(keys(index)) == {f"{n}-{i}": 4 if n == 2 else 1 for n in range(3) for i in range(10)}
    assert keys(index)[:30] == keys(Index.open(index.path.parent / index.manifest["base"]))
    plan = plan_of(index, Data(row_size=4, block=2, window=4), 3)
    rows = [plan.row(k) for k in range(15)]
    assert len({int(p) for row in rows for p in row.positions}) == 60  # each repeat has its own position
    assert build_index(tars, tmp_path / "index", weights=Weights.of_file(tmp_path / "clusters.csv")).digest == report.digest
    assert build_index(tars, tmp_path / "index").digest == base.digest


def test_weights_are_exact_on_average_and_zero_means_never(make_tar: Any, tmp_path: Path) -> None:
    tar = make_tar("x.tar", [(f"{i:04d}.jpg", b"") for i in range(3000)])
    weights = {(None, f"{i:04d}"): (1.0, 2.5, 0.0)[i % 3] for i in range(3000)}
    build_index([tar], tmp_path / "index", weights=Weights(weights))
    times = Counter(keys(Index.open(tmp_path / "index")))
    assert [times[f"{i:04d}"] for i in range(0, 3000, 3)] == [1] * 1000
    assert {times[f"{i:04d}"] for i in range(1, 3000, 3)} == {2, 3}
    assert 2400 < sum(times[f"{i:04d}"] for i in range(1, 3000, 3)) < 2600
    assert not any(times[f"{i:04d}"] for i in range(2, 3000, 3))


def test_keys_of_digits_stay_text(make_tar: Any, tmp_path: Path) -> None:
    tar = make_tar("007.tar", [(f"{i:03d}.jpg", b"") for i in range(3)])
    (tmp_path / "w.csv").write_text("shard,key,weight\n,001,3\n007.tar,002,1\n")
    assert build_index([tar], tmp_path / "index", weights=Weights.of_file(tmp_path / "w.csv")).samples == 1 + 1 + 3
    (tmp_path / "w.csv").write_text("key,weight\n1,1\n")
    with pytest.raises(UsageError, match=r"w\.csv match no sample of the index.* such as 000"):
        build_index([tar], tmp_path / "index", weights=Weights.of_file(tmp_path / "w.csv"))


def test_a_key_without_weight_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("key,weight\na,1\nb,nan\n")
    with pytest.raises(UsageError, match="'b' has no weight"):
        Weights.of_file(tmp_path / "w.csv")


@pytest.mark.parametrize("text", ["key,weight\na,-1\n", "key,weight\na,0\n", "name\na\n", ""])
def test_wrong_weights(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(UsageError, match="columns key and weight"):
        Weights.of_file(tmp_path / "w.csv")


def test_verify(tars: list[str], tmp_path: Path, make_tar: Any) -> None:
    build_index(tars, tmp_path / "index", exclude=Exclusions([(None, "0-3")]))
    index = Index.open(tmp_path / "index")
    assert verify(index).ok
    make_tar("0.tar", [(f"0-{i}.jpg", b"%d" % i) for i in range(9)] + [("other.jpg", b"9")])
    os.unlink(tars[1])
    make_tar("2.tar", [("a.jpg", bytes(20_000))])
    wrong = verify(index).wrong
    assert [Path(line.split()[0]).name for line in wrong] == ["0.tar", "1.tar", "2.tar"]
    assert "other names" in wrong[0]
    assert "the index expects" in wrong[2]


def test_shards_of_a_wids_index(tars: list[str], tmp_path: Path) -> None:
    listed = {"wids_version": 1, "shardlist": [{"url": "0.tar", "nsamples": 10}, {"url": f"file://{tars[1]}", "nsamples": 12}]}
    (tmp_path / "wids.json").write_text(json.dumps(listed))
    found = shards_of_wids(tmp_path / "wids.json")
    assert found == [(tars[0], 10), (tars[1], 12)]
    build_index([url for url, _ in found], tmp_path / "index")
    assert compare(Index.open(tmp_path / "index"), found) == [f"{tars[1]} has 10 images; the wids index says 12."]
    nested = {"datasets": [{"base": "https://host/a", "shardlist": [{"url": "x.tar"}]}]}
    (tmp_path / "wids.json").write_text(json.dumps(nested))
    assert shards_of_wids(tmp_path / "wids.json") == [("https://host/a/x.tar", None)]
    for text in ("[]", "{}", '{"shardlist": []}', "half{"):
        (tmp_path / "wids.json").write_text(text)
        with pytest.raises(UsageError, match=r"wids\.json"):
            shards_of_wids(tmp_path / "wids.json")


def test_sources_with_weights(tars: list[str], tmp_path: Path) -> None:
    sources = ({"pattern": tars[0], "weight": 3}, {"pattern": f"{tmp_path}/{{1,2}}.tar", "weight": 1})
    data = Data.model_validate({"sources": sources, "row_size": 8})
    index = open_or_build(data, tmp_path / "index")
    plan = plan_of(index, data, 1)
    samples = np.concatenate([plan.row(k).samples for k in range(50)])
    shares = np.bincount(np.where(samples < 10, 0, 1)) / len(samples)
    assert shares.tolist() == [0.75, 0.25]
    counts = np.bincount(samples, minlength=30)
    assert set(counts[:10].tolist()) == {30}  # each source uses all its samples
    assert set(counts[10:].tolist()) == {5}
    other = Data.model_validate({"sources": (sources[0], {**sources[1], "weight": 2}), "row_size": 8})
    assert open_or_build(other, tmp_path / "other").digest != index.digest
    check_one_pass(plan, data.model_copy(update={"one_pass": True}), 1, 1)
    with pytest.raises(UsageError, match="at most 1 "):
        check_one_pass(plan, data.model_copy(update={"one_pass": True}), 1, 2)
    with pytest.raises(UsageError, match="less than a step"):
        check_one_pass(plan, data.model_copy(update={"one_pass": True}), plan.rows_once + 1, 0)


def test_sources_without_weights_are_one_data_set(tars: list[str], tmp_path: Path) -> None:
    data = Data(sources=(tars[0], tars[1]), row_size=8)
    assert isinstance(plan_of(open_or_build(data, tmp_path / "index"), data, 1), Plan)
    with pytest.raises(UsageError, match="No images to learn from"):
        open_or_build(Data(), tmp_path / "index")
