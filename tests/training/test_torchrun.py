"""Runs without Ray: the same configuration, the same rows, the same losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from swav_platform.config import load
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.methods.comm import LocalComm
from swav_platform.models.package import load_package
from swav_platform.rows.job import RowJob
from swav_platform.runs.folder import RunFolder
from swav_platform.training.local_rows import local_rows

pytestmark = pytest.mark.stack  # starts processes


@pytest.fixture(scope="session")
def runs(root: Path, shards: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folder of a run of 8 steps by so many ranks; once a session."""
    done: dict[int, Path] = {}

    def run(size: int) -> Path:
        if size not in done:
            out = tmp_path_factory.mktemp(f"torchrun{size}")
            recipe = out / "empty.yaml"
            recipe.write_text("seed: 31\n")
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
            command = [sys.executable, *launch, "-m", "swav_platform.training", str(recipe), "--data", str(shards / "*.tar")]
            options = ["--name", "r", "--out", str(out), *tiny, "data.tasks=1"]
            environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
            subprocess.run([*command, *options], env=environment, check=True, timeout=500)
            done[size] = out / "r"
        return done[size]

    return run


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_learn_what_one_does(runs: Callable[[int], Path]) -> None:
    one, two = runs(1), runs(2)
    assert len(losses(one)) == 8
    assert losses(two) == pytest.approx(losses(one), abs=1e-3)
    summary = json.loads((two / "summary.json").read_text())
    assert summary["collectives"] == {"normalisation": 0, "method": 3, "gradients": 2, "health": 1}
    assert (summary["steps"], summary["images"]) == (8, 256)
    assert load_package(two / "model").prototypes.shape == (12, 16)
    index = Index.open(RunFolder(two).info()["index"])
    assert index.path == Path(RunFolder(two).info()["index"]), "a version, which stays when the folder has a newer one"


def test_rows_are_those_of_the_plan(shards: Path, tiny: list[str], tmp_path: Path) -> None:
    config = load(None, [*tiny, "data.tasks=2"])
    build_index(expand([str(shards / "*.tar")]), tmp_path)
    job = RowJob(config, str(tmp_path))
    found = list(local_rows(job, LocalComm())(3, 8))
    assert [row.row for row in found] == [3, 4, 5, 6, 7]
    again = next(iter(local_rows(job, LocalComm())(5, 6)))
    assert np.array_equal(again.packed, found[2].packed)


def test_a_sample_that_kills_its_decoder_does_not_end_the_rows(
    shards: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(expand([str(shards / "*.tar")]), tmp_path)
    job = RowJob(load(None, [*tiny, "data.tasks=2"]), str(tmp_path))
    clean = list(local_rows(job, LocalComm())(0, 4))
    victim = int(clean[1].sample[2])
    (tmp_path / "sitecustomize.py").write_text(  # Python imports it in every process
        "import os\n"
        "from swav_platform.rows.child import _Announced\n"
        "def fatal(self, sample, get=_Announced.__getitem__):\n"
        "    found = get(self, sample)\n"
        f"    return found if sample != {victim} or not isinstance(found[1], bytes) else os._exit(9)\n"
        "_Announced.__getitem__ = fatal\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    found = list(local_rows(job, LocalComm())(0, 4))
    assert [row.row for row in found] == [0, 1, 2, 3]
    assert [(event.sample, event.outcome.word) for row in found for event in row.events] == [(victim, "decode_crash")]
    assert [np.array_equal(a.packed, b.packed) for a, b in zip(clean, found, strict=True)] == [True, False, True, True]


def test_a_refused_run_leaves_what_is_there_as_it_was(
    runs: Callable[[int], Path], root: Path, shards: Path, tiny: list[str]
) -> None:
    folder = runs(1)
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "run.json")}
    command = [sys.executable, "-m", "swav_platform.training", str(folder.parent / "empty.yaml"), "--data", str(shards / "*.tar")]
    command += ["--name", "r", "--out", str(folder.parent), *tiny, "data.tasks=1", "method.temperature=0.5"]
    for more, code, said in (([], 2, "with --resume"), (["--resume"], 1, "method.temperature: 0.1 -> 0.5")):
        found = subprocess.run(
            [*command, *more], env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=300
        )
        assert found.returncode == code
        assert said in found.stderr
    assert before == {name: (folder / name).read_bytes() for name in before}
