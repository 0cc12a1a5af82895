"""Metrics in MLflow, sent from the run's own record: RUN/metrics.jsonl and RUN/evaluations.jsonl.

A run that was killed repeats the steps after its last checkpoint, and MLflow can't delete a point. So points that a repeated step
gives again are sent at once and only once. Points that measure time are sent when a checkpoint has made their step final. Each point
has the time of its line, and MLflow ignores a point that it has already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swav_platform.registry.errors import kind_of
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.metrics import read_metrics
from swav_platform.runs.storage import storage_of

EVALUATIONS = "evaluations.jsonl"
BATCH = 900  # MLflow accepts up to 1,000 metrics per call

REPEATABLE = ("train/", "health/")
TIMED = ("train/collective_share", "health/prototypes_dead")  # or count from the start of the process
_MARKS = {True: "train/loss", False: "data/images_per_second"}  # each logged line has both

Point = tuple[str, float, int, int]
"""Key, value, time in ms, step."""


def is_repeatable(key: str) -> bool:
    """Whether a repeated step gives the same value."""
    return key.startswith(REPEATABLE) and key not in TIMED


@dataclass(frozen=True)
class Known:
    """What MLflow has of one kind of points: every step below `below`, and those in `steps`."""

    below: int = 0
    steps: frozenset[int] = frozenset()

    def lacks(self, step: int) -> bool:
        return step >= self.below and step not in self.steps


def points_of(line: Mapping[str, Any], created: float) -> list[Point]:
    """The points of a line of metrics.jsonl. created: time of the run's start, for lines from before lines had a time."""
    step, at = int(line["step"]), float(line.get("time") or created + int(line["step"]) / 1000)
    return [(key, float(value), int(at * 1000), step) for key, value in line.items() if "/" in key and value is not None]


class Sender:
    """Sends what MLflow lacks of a run's record. Asks MLflow first what it has."""

    def __init__(self, folder: RunFolder, client: Any, run_id: str) -> None:
        self._client, self._run_id, self._folder = client, run_id, folder
        self._created = float(folder.info().get("created") or 0.0)
        self._has = {repeatable: self._known(mark) for repeatable, mark in _MARKS.items()}

    def send(self, final: int) -> None:
        """final: steps that the newest checkpoint contains. Raises whatever MLflow raises; the next call goes on where it failed."""
        self._send(True, None)
        self._send(False, final)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run. Raises whatever MLflow raises."""
        from mlflow.entities import RunTag

        self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def evaluations(self) -> None:
        """Sends all of evaluations.jsonl: few points, and MLflow ignores those that it has."""
        lines = evaluations_of(self._folder).splitlines()
        self._log([point for line in lines for point in points_of(json.loads(line), self._created)])

    def _send(self, repeatable: bool, end: int | None) -> None:
        """Sends points of one kind before step `end`, by whole lines: a step whose mark MLflow has is there with all its points."""
        has, batch, last = self._has[repeatable], list[Point](), -1
        for line in read_metrics(self._folder.path, has.below):
            step = int(line["step"])
            if end is not None and step >= end:
                break
            points = [p for p in points_of(line, self._created) if is_repeatable(p[0]) is repeatable and has.lacks(step)]
            if batch and len(batch) + len(points) > BATCH:
                self._flush(repeatable, batch, last)
                batch = []
            batch += points
            last = step
        if last >= 0:
            self._flush(repeatable, batch, last)

    def _flush(self, repeatable: bool, batch: list[Point], last: int) -> None:
        self._log(batch)
        later = frozenset(step for step in self._has[repeatable].steps if step > last)
        self._has[repeatable] = Known(last + 1, later)

    def _log(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(points), BATCH):
            self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in points[start : start + BATCH]])

    def _known(self, mark: str) -> Known:
        try:
            history = self._client.get_metric_history(self._run_id, mark)
        except Exception as error:
            if kind_of(error) == "missing":  # no point of this key
                return Known()
            raise
        return Known(0, frozenset(metric.step for metric in history))


def evaluations_of(folder: RunFolder) -> bytes:
    """The content of evaluations.jsonl."""
    try:
        return folder.storage.get(EVALUATIONS)
    except FileNotFoundError:
        return b""


def final_steps(folder: RunFolder) -> int:
    """Steps that the newest checkpoint contains, by its manifest; 0 without one."""
    names = (key.split("/")[0] for key in storage_of(folder.checkpoints).entries() if key.endswith("/MANIFEST.json"))
    return max((int(name.removeprefix("step-")) for name in names if name.startswith("step-")), default=0)
