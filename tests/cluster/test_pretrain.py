"""Whole runs on real Ray through the command line: complete, killed and resumed, with bad images.

Each run is a process that starts its own Ray, as for users: runs are killed here, and a data task kills its worker.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from swav_platform.runs.folder import RunFolder

pytestmark = pytest.mark.stack


def command(folder: Path, shards: Path, name: str, *more: str) -> list[str]:
    config = folder / "recipe.yaml"
    config.touch()
    return [
        *(sys.executable, "-m", "swav_platform", "pretrain", str(config), "--data", str(shards), "--name", name),
        *("--out", str(folder), "--json", f"data.sample_log={folder / name}-log", *more),
    ]


def pretrain(folder: Path, shards: Path, name: str, *more: str) -> dict[str, Any]:
    done = subprocess.run(command(folder, shards, name, *more), capture_output=True, text=True, timeout=600, cwd=folder)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def losses(folder: Path, name: str) -> list[float]:
    return RunFolder(folder / name).losses()


def log_check(folder: Path, name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "swav_platform", "ledger", "--check", str(folder / f"{name}-log"), "--json"],
        capture_output=True,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1])) | {"code": done.returncode}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny: list[str]) -> Path:
    """Folder with the run `unbroken`, on two workers."""
    folder = tmp_path_factory.mktemp("runs")
    result = pretrain(folder, shards, "unbroken", *tiny, "train.workers=2")
    assert set(result) >= {
        "run",
        "run_id",
        "steps",
        "images",
        "loss_first",
        "loss_last",
        "images_per_second",
        "quarantined",
        "blank",
        "copies",
        "checkpoint",
    }
    assert (result["steps"], result["images"], result["quarantined"]) == (8, 256, 0)
    return folder


def test_every_position_once(unbroken: Path) -> None:
    assert log_check(unbroken, "unbroken") == {"ok": True, "positions": 256, "duplicates": 0, "missing": 0, "steps": 8, "code": 0}


def test_run_and_model_are_in_mlflow(unbroken: Path) -> None:
    from mlflow.tracking import MlflowClient

    info = RunFolder(unbroken / "unbroken").info()
    client = MlflowClient(info["tracking_uri"], info["tracking_uri"])
    history = client.get_metric_history(info["run_id"], "train/loss")
    assert [m.step for m in history] == [0, 1, 3, 5, 7], "logged every second step, first and last"
    assert history[-1].value == losses(unbroken, "unbroken")[-1]
    assert client.get_run(info["run_id"]).info.status == "FINISHED"
    version = client.get_model_version_by_alias("unbroken", "candidate")
    assert version.run_id == info["run_id"]


def test_an_existing_run_is_not_overwritten(unbroken: Path, shards: Path, tiny: list[str]) -> None:
    again = subprocess.run(command(unbroken, shards, "unbroken", *tiny), capture_output=True, text=True)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    other = subprocess.run(
        command(unbroken, shards, "unbroken", *tiny, "--resume", "method.epsilon=0.1"), capture_output=True, text=True
    )
    assert other.returncode == 1
    assert "method.epsilon" in other.stderr


def test_a_killed_and_resumed_run_equals_an_unbroken_one(unbroken: Path, shards: Path, tiny: list[str]) -> None:
    arguments = command(unbroken, shards, "killed", *tiny, "train.workers=2", "--resume")
    folder = RunFolder(unbroken / "killed")
    for kill_after in (4,):
        process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda steps=kill_after: (folder.checkpoints / f"step-{steps:09d}" / "MANIFEST.json").is_file())
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = pretrain(unbroken, shards, "killed", *tiny, "train.workers=2", "--resume")
    assert result["steps"] == 8
    assert losses(unbroken, "killed") == losses(unbroken, "unbroken"), "bit for bit"
    assert log_check(unbroken, "killed")["ok"]


def test_an_interrupted_run_explains_how_to_resume(tmp_path: Path, shards: Path, tiny: list[str]) -> None:
    arguments = command(tmp_path, shards, "long", *tiny, "train.steps=100000", "train.keep_checkpoints=2")
    arguments = ["env", "--default-signal=INT", *arguments]  # a background shell ignores SIGINT in its children
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        wait_for(lambda: process.poll() is not None or list((tmp_path / "long" / "checkpoints").glob("*/MANIFEST.json")))
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=180)[1]
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert re.search(r"/step-\d{9}: .*--resume", error), error
    assert "Traceback" not in error


def wait_for(happened: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_bad_images_affect_only_their_own_positions(unbroken: Path, shards: Path, tiny: list[str], tmp_path: Path) -> None:
    spoilt = with_bad_members(shards, tmp_path / "spoilt")
    result = pretrain(unbroken, tmp_path / "spoilt", "spoilt", *tiny, "train.workers=2")
    clean, dirty = (pq.read_table(unbroken / f"{name}-log").sort_by("position").to_pylist() for name in ("unbroken", "spoilt"))
    replaced = [line for line in dirty if line["outcome"] != "ok"]
    assert {line["stand_in_for"] for line in replaced} == spoilt
    assert result["quarantined"] == len(replaced)
    for before, after in zip(clean, dirty, strict=True):
        if after["outcome"] == "ok":
            assert (before["sample_key"], before["view_hash"]) == (after["sample_key"], after["view_hash"])
    ledger = subprocess.run(
        [sys.executable, "-m", "swav_platform", "ledger", str(unbroken / "spoilt"), "--json"], capture_output=True, text=True
    )
    report = json.loads(ledger.stdout)
    assert report["outcomes"] == {"not_an_image": len(spoilt)}
    assert report["positions"] == {"not_an_image": len(replaced)}


def with_bad_members(shards: Path, into: Path, every: int = 20) -> set[str]:
    """Copies the shards with every `every`-th image replaced by bytes that are no image; returns their keys."""
    into.mkdir()
    spoilt = set()
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as old, tarfile.open(into / shard.name, "w", format=tarfile.USTAR_FORMAT) as new:
            for number, member in enumerate(old):
                content = old.extractfile(member)
                assert content is not None
                data = content.read()
                if number % every == 7:
                    spoilt.add(member.name.removesuffix(".jpg"))
                    data = b"x" * len(data)
                new.addfile(member, io.BytesIO(data))
    return spoilt


DEADLY_DECODER = """
import hashlib, os, signal
from swav_platform.rows import make

def fatal(data, *rest, decode=make.decode_reduced):
    if hashlib.md5(data).hexdigest() == os.environ["POISON"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data, *rest)

make.decode_reduced = fatal
"""


@pytest.mark.long
def test_a_sample_that_kills_its_worker_every_time(unbroken: Path, shards: Path, tiny: list[str], tmp_path: Path) -> None:
    clean = pq.read_table(unbroken / "unbroken-log").sort_by("position").to_pylist()
    victim = clean[37]["sample_key"]
    (tmp_path / "sitecustomize.py").write_text(DEADLY_DECODER)  # Python imports this file in every process
    environment = os.environ | {"POISON": md5_of(shards, victim), "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    arguments = command(unbroken, shards, "poisoned", *tiny, "train.workers=2")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, cwd=unbroken, env=environment)
    assert done.returncode == 0, done.stderr
    dirty = pq.read_table(unbroken / "poisoned-log").sort_by("position").to_pylist()
    assert {line["stand_in_for"] for line in dirty if line["outcome"] == "decode_crash"} == {victim}
    hit = sum(line["sample_key"] == victim for line in clean)
    assert json.loads(done.stdout.splitlines()[-1])["quarantined"] == hit
    for before, after in zip(clean, dirty, strict=True):
        if before["sample_key"] != victim:
            assert (before["sample_key"], before["view_hash"]) == (after["sample_key"], after["view_hash"])
    ledger = pq.read_table(unbroken / "poisoned" / "ledger").to_pylist()
    assert {line["sample_key"] for line in ledger} == {victim}
    assert log_check(unbroken, "poisoned")["ok"]


def md5_of(shards: Path, key: str) -> str:
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name == f"{key}.jpg":
                    return hashlib.md5(tar.extractfile(member).read()).hexdigest()
    raise AssertionError(f"no {key}")


def test_workers_must_leave_a_cpu_for_data_tasks(shards: Path, tiny: list[str], tmp_path: Path, local_ray: None) -> None:
    from swav_platform.cluster import pretrain as cluster_pretrain
    from swav_platform.config import load
    from swav_platform.errors import UsageError

    config = load(
        None, [*tiny, f"data.sources={json.dumps([str(shards)])}", f"run.out={tmp_path}", "run.name=greedy", "train.workers=4"]
    )
    with pytest.raises(UsageError, match=r"train\.workers=3"):
        cluster_pretrain.pretrain(config)
