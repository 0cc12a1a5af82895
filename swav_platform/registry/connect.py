"""Clients of MLflow: which server or store, with which time limits, and without MLflow's own output."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from swav_platform.config import Config
from swav_platform.config.secrets import HIDDEN, has_hidden, without_secrets
from swav_platform.errors import UsageError
from swav_platform.registry import store
from swav_platform.registry.errors import TrackingError, explained
from swav_platform.runs.folder import RunFolder, runs_on_disk

# Read by MLflow when it is imported or called: no usage statistics, no progress bars, no links with emoji.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
_NOISY = ("alembic", "mlflow", "urllib3.connectionpool", "urllib3.util.retry", "botocore", "boto3", "sqlalchemy")

SHORT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Limits of requests about runs and metrics. Artifacts and models have MLflow's own: 120 s and 7 retries."""
_limits = threading.RLock()


def tracking_uri(config: Config) -> str:
    """config.tracking.uri, else MLFLOW_TRACKING_URI, else a SQLite file in the folder of the runs."""
    out = runs_on_disk(config.run.out)
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out / 'mlflow.db'}"


def uri_of_run(folder: RunFolder) -> str:
    """Where a run is recorded. run.json has no passwords, so these come from the environment."""
    recorded = str(folder.info()["tracking_uri"] or "")
    if has_hidden(recorded):
        here = os.environ.get("MLFLOW_TRACKING_URI", "")
        return here if without_secrets(here) == recorded else recorded.replace(f":{HIDDEN}@", "@").replace(f"{HIDDEN}@", "")
    path = store.path_of(recorded)
    beside = (folder.path.parent if folder.url is None else runs_on_disk(None)) / "mlflow.db"
    if not recorded or (path is not None and not path.is_file() and beside.is_file()):  # the folder was moved
        return f"sqlite:///{beside}"
    return recorded


def connect(uri: str, *, create: bool = True) -> Any:
    """A client. create: make a SQLite store that does not exist. Raises UsageError for an address that MLflow does not know."""
    quiet()
    path = store.path_of(uri)
    with explained(uri):
        if path is not None:
            if not create and not path.is_file():
                raise TrackingError(f"There is no MLflow store {path}. Check the path in {without_secrets(uri)}.", "missing")
            store.prepare(path)
            uri = store.with_patience(uri)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
        except MlflowException as error:
            if "unsupported URI" not in str(error):
                raise
            raise UsageError(
                f"{without_secrets(uri)} is not an address of MLflow. Set tracking.uri or MLFLOW_TRACKING_URI to a server "
                f"(http://HOST:5000) or a store (sqlite:///FILE)."
            ) from None


def quiet() -> None:
    """Keeps the output of MLflow and its libraries from the user's terminal."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(mlflow|alembic|sqlalchemy)(\..*)?")
    with contextlib.suppress(ImportError):
        import mlflow.utils.logging_utils  # noqa: F401  sets the level of its loggers when it is imported

        logging.getLogger("mlflow").setLevel(logging.ERROR)


@contextlib.contextmanager
def short_limits() -> Iterator[None]:
    """Short time limits for the requests inside. Limits that the user has set in the environment stay."""
    with _limits:
        ours = {name: value for name, value in SHORT.items() if name not in os.environ}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name in ours:
                os.environ.pop(name, None)
