"""Checkpoints in a bucket: half of one is none, uploads run beside the training, and a storage that is away ends nothing."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch

from swav_platform.errors import UserError
from swav_platform.failures import Kind, MachineFault
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.records import metrics_in
from swav_platform.runs.storage import ObjectFolder, storage_of
from swav_platform.training.checkpoints.store import MANIFEST, Snapshot, latest_valid, load, newest, prune, save
from tests.s3 import S3Server

pytestmark = pytest.mark.stack


@pytest.fixture
def url(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    s3.store("checkpoints").put("probe", b"makes the bucket")
    monkeypatch.setenv("SWAV_CACHE", str(tmp_path / "cache"))
    return f"s3://checkpoints/{tmp_path.name}/mine"


def snapshot(steps: int) -> Snapshot:
    return Snapshot(steps, {"a": torch.arange(9.0) + steps}, {"a/step": torch.tensor(3.0)}, {}, {"x": 1.5})


def test_there_and_back(url: str) -> None:
    assert newest(url) is None
    for steps in (1, 2, 3):
        assert save(url, snapshot(steps)) == f"{url}/step-{steps:09d}"
    path, found = newest(url) or (None, snapshot(0))
    assert (path, found.steps, found.state["x"]) == (latest_valid(url), 3, 1.5)
    assert torch.equal(found.model["a"], torch.arange(9.0) + 3)
    prune(url, keep=1)
    assert {key.partition("/")[0] for key in storage_of(url).entries()} == {"step-000000003"}


def test_half_of_a_checkpoint_is_none(url: str) -> None:
    old, new = save(url, snapshot(1)), save(url, snapshot(2))
    storage = storage_of(new)
    storage.put("optimizer.safetensors", storage.get("optimizer.safetensors")[:-1])
    assert latest_valid(url) == old
    storage.put("optimizer.safetensors", storage.get("optimizer.safetensors") + b"?")
    assert (newest(url) or (None,))[0] == old, "another content of the right size"
    save(url, snapshot(2))
    storage.delete([MANIFEST])
    assert latest_valid(url) == old
    storage_of(old).put("state.json", b"{}")
    with pytest.raises(UserError, match=r"All checkpoints of this run are damaged"):
        newest(url)


def test_who_has_lost_the_run_writes_no_manifest(url: str) -> None:
    def lost() -> None:
        raise UserError("took over")

    with pytest.raises(UserError, match="took over"):
        save(url, snapshot(1), lost)
    assert latest_valid(url) is None


def test_a_run_in_a_bucket_is_that_on_disk(rig: ModuleType, whole: Path, url: str) -> None:
    with pytest.raises(ConnectionError):
        rig.train(rig.config(), url, stop=6 * 8 + 3)
    result = rig.train(rig.config(), url, resume=True)
    storage = storage_of(url)
    assert [json.loads(line)["loss"] for line in metrics_in(storage)] == rig.losses(whole)
    assert result.checkpoint == f"{url}/checkpoints/step-000000010"
    one, two = load(result.checkpoint), load(whole / "checkpoints" / "step-000000010")
    assert all(torch.equal(one.model[name], two.model[name]) for name in two.model)
    assert [key for key in storage.entries("checkpoints/") if key.endswith(MANIFEST)][-1].startswith("checkpoints/step-000000010")


def test_training_goes_on_while_the_storage_is_away(
    rig: ModuleType, whole: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Uploads fail from the first checkpoint (step 4) until the last one (step 10) is due."""
    put, away = ObjectFolder.put, threading.Event()
    away.set()

    def fail(self: ObjectFolder, key: str, data: bytes | Path) -> None:
        if away.is_set() and "step-" in self.place:
            raise MachineFault(Kind.UNREACHABLE, "s3://…", "connection refused")
        put(self, key, data)

    monkeypatch.setattr(ObjectFolder, "put", fail)
    seen = []

    def progress(found: object) -> None:
        seen.append(found.step)  # type: ignore[attr-defined]
        if found.step == 8:  # type: ignore[attr-defined]
            away.clear()

    rig.train(rig.config(), url, on_progress=progress)
    assert seen == list(range(10))
    assert "No checkpoint of step 8: the upload of the checkpoint of step 4 is still running" in caplog.text
    assert [json.loads(line)["loss"] for line in metrics_in(storage_of(url))] == rig.losses(whole)
    names = {key.split("/")[1] for key in storage_of(url).entries("checkpoints/")}
    assert names == {"step-000000004", "step-000000010"}


def test_what_ends_a_run_is_said(rig: ModuleType, url: str) -> None:
    def lost() -> None:
        raise UserError("another process took over the run")

    with pytest.raises(UserError, match="took over the run"):
        rig.train(rig.config(train__steps=1), url, confirm=lost)


def test_a_folder_of_a_run_is_copied_once(url: str) -> None:
    run = RunFolder.at(url)
    (run.path / "model").mkdir(parents=True)
    (run.path / "model" / "model.json").write_text("{}")
    run.publish("model")
    first = run.fetched("model")
    assert (first / "model.json").read_text() == "{}"
    assert run.fetched("model") == first
    storage_of(url).put("model/model.json", b"{ }")
    assert (run.fetched("model") / "model.json").read_text() == "{ }"
