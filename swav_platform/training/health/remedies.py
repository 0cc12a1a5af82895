"""`train.health=rollback`: the settings that a run changed on its way, in RUN/remedies.json, and going back to a healthy checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from swav_platform.config import Config, from_tree
from swav_platform.methods.comm import Comm
from swav_platform.runs.folder import RunFolder
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.collectives import all_or_none, broadcast_bytes
from swav_platform.training.health.monitor import Unhealthy

log = logging.getLogger("swav")

NAME = "remedies.json"
MOST = 3  # rollbacks of a run


def remedied(config: Config, folder: RunFolder, comm: Comm, step: int | None = None) -> Config:
    """The configuration with the remedies so far; of a step, those that it was made with. Rank 0 reads them."""
    if config.train.health != "rollback":
        return config
    known = json.loads(broadcast_bytes(json.dumps(_read(folder) if comm.rank == 0 else []).encode(), comm))
    tree = config.model_dump(mode="json")
    for remedy in known:
        if step is None or remedy["start"] <= step:
            _apply(tree, remedy["settings"])
    return from_tree(tree)


def roll_back(folder: RunFolder, error: Unhealthy, comm: Comm) -> None:
    """Notes the remedy of `error` and deletes the checkpoints after the last healthy step. Raises `error` if there is no remedy, or
    if MOST have not helped."""

    def write() -> None:
        if comm.rank == 0:
            known = _read(folder)
            if not error.remedy or len(known) >= MOST:
                raise error
            settings = ", ".join(f"{key}={value:.4g}" for key, value in error.remedy.items())
            kept = checkpoints.before(folder.checkpoints, error.well_until)
            start = 0 if kept is None else checkpoints.steps_of(kept)
            log.warning(
                f"The run is {error.health.state} at step {error.health.step}: {error.health.because}. "
                f"It goes back to step {start} and continues with {settings}."
            )
            note = {"step": error.health.step, "start": start, "because": error.health.because, "settings": error.remedy}
            folder.storage.put(NAME, json.dumps([*known, note], indent=1).encode())
            checkpoints.delete(checkpoints.after(folder.checkpoints, start))

    all_or_none(write, comm)


def _read(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        return list(json.loads(folder.storage.get(NAME)))
    except FileNotFoundError:
        return []


def _apply(tree: dict[str, Any], settings: Mapping[str, float]) -> None:
    for key, value in settings.items():
        node, path = tree, key.split(".")
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
