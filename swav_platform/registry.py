"""Runs, metrics and models in MLflow. No other module imports mlflow."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swav_platform.config import Config
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.folder import runs_on_disk

# MLflow's defaults block each call to an unreachable server for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

FLUSH_SECONDS = 2.0
BATCH = 900  # MLflow accepts up to 1,000 metrics per call


def tracking_uri(config: Config) -> str:
    """config.tracking.uri, else MLFLOW_TRACKING_URI, else a SQLite file in the folder of the runs."""
    out = runs_on_disk(config.run.out)
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out / 'mlflow.db'}"


def without_password(text: str) -> str:
    """`text` with *** for the passwords of the URLs in it."""
    return re.sub(r"(://[^/:@\s]*):[^/\s]*@", r"\1:***@", text)


def start_run(config: Config, run_id: str | None, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """Creates a run, or reopens `run_id` if the server has it. Returns the id."""
    with _explained(tracking_uri(config)):
        client = _client(tracking_uri(config))
        if run_id is not None and _reopened(client, run_id):
            return run_id
        run = client.create_run(_experiment(client, config), run_name=config.run.name, tags={k: str(v) for k, v in tags.items()})
        for key, value in params.items():
            client.log_param(run.info.run_id, key, str(value)[:500])
        return str(run.info.run_id)


def finish_run(uri: str, run_id: str, status: str, metrics: Mapping[str, float] | None = None) -> None:
    """status: FINISHED, FAILED or KILLED."""
    with _explained(uri):
        client = _client(uri)
        for key, value in (metrics or {}).items():
            client.log_metric(run_id, key, value)
        client.set_terminated(run_id, status)


def log_metrics(uri: str, run_id: str, metrics: Mapping[str, float], step: int) -> None:
    with _explained(uri):
        for key, value in metrics.items():
            _client(uri).log_metric(run_id, key, value, step=step)


def register_package(uri: str, run_id: str, folder: Path, model: str) -> str:
    """Uploads a model package to its run, registers it with the alias `candidate` and returns its models:/ URI."""
    with _explained(uri):
        import mlflow.exceptions

        client = _client(uri)
        client.log_artifacts(run_id, str(folder), artifact_path="model")
        with contextlib.suppress(mlflow.exceptions.MlflowException):
            client.create_registered_model(model)
        version = client.create_model_version(model, source=f"runs:/{run_id}/model", run_id=run_id)
        client.set_registered_model_alias(model, "candidate", version.version)
        return f"models:/{model}/{version.version}"


def download_package(uri: str, model_uri: str, into: Path) -> Path:
    """Downloads the package of models:/NAME@alias, models:/NAME/version or runs:/ID/model into a folder; returns its path."""
    with _explained(uri):
        import mlflow.artifacts

        into.mkdir(parents=True, exist_ok=True)
        source = _version_source(uri, model_uri) if model_uri.startswith("models:/") else model_uri
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(into), tracking_uri=uri))


def _version_source(uri: str, model_uri: str) -> str:
    """Where the artifacts of a model version are. MLflow's own download would look it up in the process-wide registry."""
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model_uri)
    if found is None:
        raise UsageError(f"{model_uri} is not a model URI that can be loaded. Use models:/NAME@alias or models:/NAME/3.")
    name, alias, version = found.groups()
    client = _client(uri)
    if alias is not None:
        version = client.get_model_version_by_alias(name, alias).version
    return str(client.get_model_version_download_uri(name, version))


class Tracker:
    """Sends metrics in batches from a thread, so that training never waits for the tracking server.

    Failed batches are retried. Metrics still unsent at the end are dropped with a warning; metrics.jsonl in the run's folder
    has all of them.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self._uri, self._run_id = uri, run_id
        self._points: queue.Queue[tuple[str, float, int, int]] = queue.Queue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def progress(self, progress: Any) -> None:
        """progress: `training.loop.Progress`."""
        now = int(time.time() * 1000)
        for key, value in progress.metrics.items():
            self._points.put((key, float(value), now, progress.step))

    def close(self, timeout: float = 30.0) -> None:
        self._closing.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        unsent: list[tuple[str, float, int, int]] = []
        while True:
            last = self._closing.wait(FLUSH_SECONDS)
            unsent += [self._points.get() for _ in range(self._points.qsize())]
            try:
                while unsent:
                    self._send(unsent[:BATCH])
                    unsent = unsent[BATCH:]
            except Exception as error:  # an unreachable server must not stop a run
                where, why = without_password(self._uri), without_password(_cause(error))
                logging.getLogger(__name__).warning("metrics could not be sent to %s: %s", where, why)
            if last:
                return

    def _send(self, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        _client(self._uri).log_batch(self._run_id, metrics=[Metric(*point) for point in points])


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _reopened(client: Any, run_id: str) -> bool:
    """False if the server does not have the run, because it was created on another server."""
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _experiment(client: Any, config: Config) -> str:
    name = config.tracking.experiment
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    beside = None
    if tracking_uri(config).startswith("sqlite:"):  # no server stores artifacts, so they go next to the database
        beside = (runs_on_disk(config.run.out) / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=beside))


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow request to {without_password(uri)} failed ({without_password(_cause(error))}). Check that the server "
            f"answers and that tracking.uri or MLFLOW_TRACKING_URI is its address. If neither is set, "
            "a SQLite file is used."
        ) from error


def _cause(error: BaseException) -> str:
    """The cause in one sentence: the network error if there is one, else the first sentence of MLflow's message."""
    root = error
    while inner := root.__cause__ or root.__context__:
        root = inner
    if isinstance(root, (ConnectionError, TimeoutError, socket.gaierror)):
        return root.strerror or str(root) or type(root).__name__
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.split(r"\.\s", line, maxsplit=1)[0].rstrip(".")
