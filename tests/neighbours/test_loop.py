"""From images to an index for the next run: what is excluded appears neither among neighbours nor in the next plan."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from services.embeddings.store import load_store
from swav_platform.cli.main import run
from swav_platform.config import Data, ImagePolicy
from swav_platform.data.datasets import plan_of
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.sets.excluded import excluded_now
from swav_platform.data.sets.read import open_set
from swav_platform.evaluation.embed import embed, embed_job
from swav_platform.models.inference import load_for_inference
from swav_platform.neighbours.index import open_neighbours
from tests.evaluation.test_embed import package as package  # a fixture
from tests.makers import smooth, write_tar


def keys(index: Index) -> list[str]:
    return [line.key for line in index.lines(range(index.samples))]


def test_lists_go_back_into_the_index(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [(f"{n:03d}.jpg", smooth(n, 48 if n % 2 else 56)) for n in range(90)]
    copies = [(f"copy-{n:03d}.jpg", files[n][1]) for n in range(8)]
    write_tar(tmp_path / "a.tar", files + copies)
    build_index(["a.tar"], tmp_path / "index")
    place = tmp_path / "run" / "embeddings"
    embed(embed_job(package, Index.open(tmp_path / "index"), place, ImagePolicy(), thumbnails=True))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"index": Index.open("index").place}))
    commands = (
        "neighbours duplicates run --threshold 0.9999999 --keep first",
        "neighbours curate run/embeddings --exclude duplicates.txt --keep 50",
        "index a.tar --out index --exclude duplicates.txt --weights weights.parquet",
    )
    answers = []
    for command in commands:
        assert run([*command.split(), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    dropped = set(keys_of("duplicates.txt"))
    assert {f"copy-{n:03d}" for n in range(8)} <= dropped
    assert answers[0]["samples_to_drop"] == len(dropped)
    assert answers[1]["kept"] == answers[2]["samples"] == 50
    chosen = {line["key"] for line in pq.read_table("weights.parquet").to_pylist() if line["weight"]}
    index = Index.open("index")
    assert set(keys(index)) == chosen
    assert not chosen & dropped

    made = open_set(place)
    search = open_neighbours(tmp_path / "run" / "embeddings-neighbours", of_set=made.digest, excluded=excluded_now(place))
    everything = {hit.key for hit in search.search(search.vector(20)[None], 200)[0]}
    assert everything == {f"{n:03d}" for n in range(90)} - dropped
    served = load_store(place, load_for_inference(package))
    assert set(served.table["key"].to_pylist()) == everything
    plan = plan_of(index, Data(row_size=8, block=8, window=2), 0)
    planned = {int(n) for row in range(7) for n in plan.row(row).samples}
    assert {index.lines([n])[0].key for n in planned} <= chosen


def keys_of(path: str) -> list[str]:
    return [line.rpartition("\t")[2] for line in Path(path).read_text().splitlines()]
