"""Judges a run while it trains: keeps health.json up to date, warns, and stops the run if the settings say so. Rank 0 judges."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from swav_platform.config import Config
from swav_platform.errors import UserError
from swav_platform.methods.comm import Comm
from swav_platform.runs.health_file import WAITING, Health, read_health, write_health
from swav_platform.runs.metrics import read_metrics
from swav_platform.training.collectives import broadcast_bytes
from swav_platform.training.health.verdict import HEALTHY, Judge

log = logging.getLogger("swav")

WRITE_SECONDS = 5.0  # between two writes of the same verdict
ENDING = ("stuck", "collapsed", "diverging", "broken")  # verdicts that training on does not mend


class Unhealthy(UserError):
    """The verdict that ends a run. remedy: settings that would have helped. well_until: steps before the first sign of it."""

    def __init__(self, health: Health, remedy: Mapping[str, float], well_until: int) -> None:
        self.health, self.remedy, self.well_until = health, dict(remedy), well_until
        super().__init__(
            f"The run is {health.state} at step {health.step}: {health.because}, so it stopped (train.health). {health.do}"
        )


class Monitor:
    """The judge of one run, on rank 0; elsewhere it only learns of the end."""

    def __init__(self, config: Config, samples: int, total: int, folder: Path, comm: Comm) -> None:
        self._reaction, self._folder, self._comm = config.train.health, folder, comm
        self._judge = Judge(config, samples, total) if comm.rank == 0 else None
        self._state, self._written = "", 0.0

    def open(self) -> None:
        """Reads the steps that the run has made already."""
        if self._judge is not None:
            for line in read_metrics(self._folder):
                self._judge.add(line)

    def line(self, values: Mapping[str, Any], last: bool = False) -> None:
        """Adds the metrics of a finished step; of the last one, before the checkpoint that publishes health.json.

        Raises UserError if health.json can't be written.
        """
        if self._judge is not None and self._judge.add({**values, "time": time.time()}):
            self._written = 0.0 if last else self._written
            self._tell(self._judge.health)

    def react(self) -> None:
        """Called on all ranks after a logged step. Raises Unhealthy on all if the verdict ends the run."""
        if self._reaction != "warn":
            judge = self._judge
            self._raise(judge is not None and judge.health.state in ENDING)

    def ended(self, step: int, loss: float, grad_norm: float) -> None:
        """Called on all ranks when a loss was not finite. Raises Unhealthy if a rollback could help."""
        if self._judge is not None:
            self._tell(self._judge.not_finite(step, loss, grad_norm))
        if self._reaction == "rollback":
            self._raise(self._judge is not None and self._judge.health.state == "diverging")

    def _raise(self, unhealthy: bool) -> None:
        """All ranks must call it; rank 0 decides."""
        told = b""
        if self._judge is not None and unhealthy:
            finding, health = self._judge.finding, self._judge.health
            parts = [health.state, health.because, health.do, health.since, health.step]
            told = json.dumps([parts, dict(finding.remedy) if finding else {}, self._judge.well_until]).encode()
        if told := broadcast_bytes(told, self._comm):
            parts, remedy, well_until = json.loads(told)
            raise Unhealthy(Health(*parts), remedy, well_until)

    def _tell(self, health: Health) -> None:
        """A note that the run waits stays until the wait ends."""
        news = health.state != self._state
        if not news and time.monotonic() - self._written < WRITE_SECONDS:
            return
        if news and health.state not in HEALTHY:
            log.warning(f"Step {health.step}: the run is {health.state}: {health.because}. {health.do}")
        self._state, self._written = health.state, time.monotonic()
        before = read_health(self._folder)
        if before is None:
            write_health(self._folder, health)
        elif before.state != WAITING:
            write_health(self._folder, replace(health, workers=before.workers, restarts=before.restarts))

    def close(self) -> None:
        """Writes the newest verdict."""
        self._written = 0.0
        if self._judge is not None and self._judge.health.step is not None:
            with contextlib.suppress(UserError):
                self._tell(self._judge.health)
