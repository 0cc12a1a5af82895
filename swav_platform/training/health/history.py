"""What a verdict looks at: the newest logged steps of a run, and how far it has come. Memory does not grow with the run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SAMPLED = 256  # images of a step that measures come from, at most
KEPT = 40  # readings
RECENT = 3  # readings that must agree before something is said


@dataclass(frozen=True)
class Reading:
    """A logged step. loss: mean over the steps since the reading before."""

    step: int
    loss: float
    lr: float
    time: float | None
    metrics: Mapping[str, float]

    def get(self, name: str) -> float | None:
        """A metric of this step; None if it is absent, as in records of older versions."""
        value = self.metrics.get(name)
        return None if value is None else float(value)


class History:
    """Lines of metrics.jsonl, added in order."""

    def __init__(self, first: int = 0) -> None:
        """first: step from which learning rates count."""
        self._first = first
        self.readings: deque[Reading] = deque(maxlen=KEPT)
        self.first: Reading | None = None
        self.step = -1  # of the newest line
        self.lr_spent = 0.0  # sum of the learning rates from step `first` on
        self._losses: list[float] = []  # since the newest reading

    def add(self, line: Mapping[str, Any]) -> bool:
        """Returns whether the line is a reading: the line of a logged step."""
        self.step = int(line["step"])
        self._losses.append(float(line["loss"]))
        self.lr_spent += float(line.get("lr", 0.0)) if self.step >= self._first else 0.0
        if "train/loss" not in line:
            return False
        loss = math.fsum(self._losses) / len(self._losses)
        metrics = {k: float(v) for k, v in line.items() if "/" in k and v is not None}
        at = None if line.get("time") is None else float(line["time"])
        reading = Reading(self.step, loss, float(line["lr"]), at, metrics)
        self._losses = []
        self.first = self.first or reading
        self.readings.append(reading)
        return True

    @property
    def recent(self) -> list[Reading]:
        return list(self.readings)[-RECENT:]

    def mean(self, name: str) -> float | None:
        """Mean of a metric over the recent readings; None if one of them lacks it, or if there are too few."""
        values = [reading.get(name) for reading in self.recent]
        known = [value for value in values if value is not None]
        return math.fsum(known) / RECENT if len(known) == RECENT else None

    def newest(self, name: str) -> float | None:
        """The newest value of a metric that not every reading has."""
        return next((value for r in reversed(self.readings) if (value := r.get(name)) is not None), None)

    @property
    def loss(self) -> float | None:
        """Mean loss over the recent readings, of all their steps."""
        recent = self.recent
        return math.fsum(r.loss for r in recent) / RECENT if len(recent) == RECENT else None
