"""From a run's record to a verdict: the same function for a run that trains and for one that ended years ago."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from swav_platform.config import Config
from swav_platform.runs.health_file import Health
from swav_platform.training.health.corridor import LATE, Corridor
from swav_platform.training.health.history import RECENT, History
from swav_platform.training.health.rules import RULES
from swav_platform.training.health.subject import Finding, Subject

HEALTHY = ("starting", "learning")


class Judge:
    """Reads a run's lines in order. `health` is the verdict after the newest one."""

    def __init__(self, config: Config, samples: int | None = None, total: int | None = None) -> None:
        """samples: size of the index; with it, `total` (steps of the run) follows from the settings."""
        total = total or config.steps(samples or config.train.batch)
        corridor = Corridor.of(config, samples, total)
        self.subject = Subject(config, History(corridor.first), corridor, samples, total)
        self.health = Health("starting", "no step has been logged yet")
        self.finding: Finding | None = None
        self.well_until = 0  # steps before the first sign of the present fault

    def add(self, line: Mapping[str, Any]) -> bool:
        """Adds a line of metrics.jsonl, and returns whether there is a new verdict."""
        history = self.subject.history
        if not history.add(line):
            return False
        self.finding = next((found for rule in RULES if (found := rule(self.subject)) is not None), None)
        state, because, do = self._said()
        newest = history.readings[-1]
        if state in HEALTHY and len(history.readings) > RECENT:
            self.well_until = history.readings[-RECENT - 1].step + 1
        same = state == self.health.state and self.health.since > 0
        since = self.health.since if same else newest.time or 0.0  # unknown in records of older versions
        self.health = Health(state, because, do, since, newest.step)
        return True

    def _said(self) -> tuple[str, str, str]:
        if self.finding is not None:
            return self.finding.state, self.finding.because, self.finding.do
        run, gain = self.subject, self.subject.gain
        if not run.due() or (run.learned is False and not (run.due(LATE) and run.tells_apart)):
            apart = run.history.mean("health/separation")
            sign = "" if apart is None else f"; images differ {apart:.1f} times as much as views of one image (by chance 1)"
            return "starting", f"{run.history.step + 1:,} of {run.total:,} steps, too early to judge{sign}", ""
        parts = (
            []
            if gain is None
            else [f"the loss is {abs(gain):.2f} {'below' if gain >= 0 else 'above'} that of uniform predictions"]
        )
        names = {
            "health/rankme": "RankMe",
            "health/lidar": "LiDAR",
            "health/effective_rank": "effective rank",
            "health/separation": "separation",
        }
        parts += [f"{word} {value:.1f}" for name, word in names.items() if (value := run.history.mean(name)) is not None][:2]
        return "learning", ", ".join(parts), ""

    def not_finite(self, step: int, loss: float, grad_norm: float) -> Health:
        """The verdict of a run that a loss or a gradient ended: it diverged, or something in the step was broken."""
        config, history = self.subject.config, self.subject.history
        moved, norm = history.newest("train/update_share") or 0.0, history.newest("train/grad_norm") or 0.0
        start = (history.first.get("train/grad_norm") if history.first else None) or norm
        how = f"the loss of step {step} is {loss:g} and its gradient {grad_norm:g}"
        if config.train.precision == "fp16":
            state, why, do = "broken", "numbers overflow in fp16", "Set train.precision=bf16, or fp32, under another run.name."
        elif self.health.state == "diverging" or moved > 0.1 or (math.isfinite(norm) and norm > 100 * start):
            state, why = "diverging", f"steps moved the weights by {moved:.0%} of their length before"
            do = "Lower train.optimiser.lr tenfold, or lengthen train.optimiser.warmup_steps."
            self.finding = Finding(state, why, do, {"train.optimiser.lr": config.train.optimiser.lr / 4})
        else:
            state, why = "broken", "the steps before were healthy"
            do = f"Find the image and the layer with `swav replay RUN --step {step}`."
        self.health = Health(state, f"{how}; {why}", do, time.time(), step)
        return self.health


def verdict(config: Config, lines: Iterable[Mapping[str, Any]], samples: int | None = None) -> Health:
    """The verdict after the last of `lines` (a run's metrics.jsonl)."""
    judge = Judge(config, samples)
    for line in lines:
        judge.add(line)
    return judge.health
