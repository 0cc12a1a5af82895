"""RUN/tracking.json: all that is needed to record a run in MLflow, at its start or later."""

from __future__ import annotations

import contextlib
import json
import uuid
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from swav_platform.config.secrets import tree_without_secrets
from swav_platform.runs.folder import RunFolder

FORMAT = 1
NAME = "tracking.json"


@dataclass(frozen=True)
class Card:
    """The facts about a run that MLflow records.

    uid: the identity of the run, also where MLflow never answered; a tag of the run in MLflow. run_id: MLflow's, once it is known.
    dataset: name, digest and source of the index.
    """

    experiment: str
    tags: dict[str, str]
    params: dict[str, str]
    dataset: dict[str, str] = field(default_factory=dict)
    log_checkpoints: bool = False
    system_metrics: bool = False
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str | None = None

    def write(self, folder: RunFolder) -> None:
        content = tree_without_secrets({"format": FORMAT, **asdict(self)})
        folder.storage.put(NAME, json.dumps(content, indent=1, ensure_ascii=False).encode())


def read_card(folder: RunFolder) -> Card:
    """The card of a run. Runs from before this file existed have one with their id in MLflow only."""
    known = set(Card.__dataclass_fields__)
    with contextlib.suppress(FileNotFoundError):
        tree: dict[str, Any] = json.loads(folder.storage.get(NAME))
        return Card(**{key: value for key, value in tree.items() if key in known})
    return Card(folder.config().tracking.experiment, {"swav.run": folder.name}, {}, run_id=folder.info()["run_id"])


def note_run_id(folder: RunFolder, card: Card, run_id: str) -> Card:
    """Records the id that MLflow gave to the run, in tracking.json and in run.json."""
    card = replace(card, run_id=run_id)
    card.write(folder)
    info = folder.info()
    if info.get("run_id") != run_id:
        folder.storage.put("run.json", json.dumps(info | {"run_id": run_id}, indent=1).encode())
    return card
