"""Stores of MLflow, and runs to record in them."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swav_platform.config import load
from swav_platform.registry import Card, store
from swav_platform.runs.folder import RunFolder


@pytest.fixture(scope="session")
def complete_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new SQLite store. Making one takes seconds, so tests copy it."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    store.prepare(path)
    return path


@pytest.fixture
def uri(complete_store: Path, tmp_path: Path) -> str:
    """The URI of a new SQLite store in the test's folder."""
    shutil.copy(complete_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def line(step: int, **values: float) -> dict[str, Any]:
    """A logged line of metrics.jsonl."""
    points = {"train/loss": 4.0 - step / 100, "train/lr": 0.1, "data/images_per_second": 100 + time.time() % 1}
    return {"step": step, "loss": 1.0, "lr": 0.1, **points, **values, "time": round(time.time(), 3)}


@pytest.fixture
def make_recorded(tmp_path: Path) -> Callable[..., RunFolder]:
    """make_recorded(name, uri, steps=5): `make_folder` in the test's folder."""
    return functools.partial(make_folder, tmp_path)


def make_folder(out: Path, name: str, uri: str, steps: int = 5) -> RunFolder:
    """A run's folder with so many logged steps, a final checkpoint and a package."""
    config = load(None, [f"run.name={json.dumps(name)}", f"run.out={out}", f"tracking.uri={uri}"])
    folder = RunFolder(out / name)
    folder.write(config, index=folder.index, index_digest="d", samples=1, tracking_uri=uri)
    record(folder, range(steps))
    if steps:
        commit(folder, steps)
    folder.package.mkdir()
    (folder.package / "model.json").write_text("{}")
    (folder.package / "encoder.safetensors").write_bytes(name.encode())
    return folder


def record(folder: RunFolder, steps: range) -> None:
    """Writes metrics.jsonl as a training does that has its last checkpoint at steps.start."""
    kept = folder.metrics.read_text().splitlines() if folder.metrics.is_file() else []
    lines = [text for text in kept if json.loads(text)["step"] < steps.start] + [json.dumps(line(step)) for step in steps]
    aside = folder.metrics.with_name("_metrics")
    aside.write_text("".join(text + "\n" for text in lines))
    aside.replace(folder.metrics)


def commit(folder: RunFolder, steps: int) -> None:
    checkpoint = folder.checkpoints / f"step-{steps:09d}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "MANIFEST.json").touch()


def recorded(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    """Steps and values of a metric in MLflow, in the order of steps."""
    return sorted((each.step, each.value) for each in client.get_metric_history(run_id, key))


def of_record(folder: RunFolder, key: str) -> list[tuple[int, float]]:
    lines = [json.loads(text) for text in folder.metrics.read_text().splitlines()]
    return [(each["step"], each[key]) for each in lines if key in each]


def card(**more: Any) -> Card:
    return Card(experiment="swav", tags={"swav.run": "r"}, params={"seed": "31", "method.name": "swav"}, **more)
