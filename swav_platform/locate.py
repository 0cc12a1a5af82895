"""Finds the model package that a user names: a run, a folder, or a model in MLflow. For the Python API and `swav serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from swav_platform.errors import UsageError
from swav_platform.runs.folder import RunFolder, find, runs_on_disk


class Located(NamedTuple):
    """Where a model is: the folder of its package, and its run if it was named by one."""

    package: Path
    run: RunFolder | None


def locate(source: str, scratch: Path, *, out: str | None = None, tracking_uri: str | None = None) -> Located:
    """Finds the model package that `source` names, as `swav_platform.load` describes. A package in MLflow is downloaded to `scratch`."""
    if source.startswith(("models:/", "runs:/")):
        from swav_platform.registry import download_package  # imported here: MLflow is slow

        return Located(download_package(tracking_uri_for(source, out, tracking_uri), source, scratch), None)
    if (Path(source) / "model.json").is_file():
        return Located(Path(source), None)
    run = find(source, out)
    if not (run.package / "model.json").is_file():
        raise UsageError(f"Run {run.name} has no model yet ({run.package}). Finish it with `swav pretrain … --resume`.")
    return Located(run.package, run)


def tracking_uri_for(source: str, out: str | None, given: str | None) -> str:
    """The MLflow server or store that is to know `source`. Raises UsageError if there is no such store."""
    if uri := given or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    store = runs_on_disk(out) / "mlflow.db"
    if store.is_file():
        return f"sqlite:///{store}"
    raise UsageError(
        f"No MLflow server or store is named for {source}, and there is no {store}. "
        f"Set --tracking-uri (in Python tracking_uri) or MLFLOW_TRACKING_URI, for example to sqlite:///swav-demo/mlflow.db."
    )
