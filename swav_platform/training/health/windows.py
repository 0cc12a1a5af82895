"""Measures over several logged steps: prototypes that no image reaches, and steps whose images resemble each other.

They count from the start of the process, so a resumed run begins again, and a repeated step may lack them.
"""

from __future__ import annotations

import torch
from torch import Tensor

DEAD_AFTER = 10  # a prototype is dead if it got nothing while an average one got ten: by chance e^-10 of them
FEWEST_STEPS = 4  # for a variance between steps


class Usage:
    """Which prototypes were the nearest to some view since the last report."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None

    def add(self, counts: Tensor) -> dict[str, float]:
        """counts: [K], of a logged step. Reports when there are enough of them, and begins again."""
        if not len(counts):
            return {}
        self._counts = counts if self._counts is None else self._counts + counts
        if self._counts.sum() < DEAD_AFTER * len(counts):
            return {}
        dead, self._counts = float((self._counts == 0).sum()), None
        return {"health/prototypes_dead": dead}


class Mixing:
    """Whether the images of a step resemble each other more than those of a mixed stream would.

    The F ratio of small images between and within steps: 1 if each step is a random draw.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._n = self._within = self._freedom = 0.0
        self._mean = torch.zeros(0)
        self._between = 0.0

    def add(self, small: Tensor) -> dict[str, float]:
        """small: [n, P] of a logged step. Values from the fourth logged step on."""
        if len(small) < 2 or not small.isfinite().all():
            return {}
        mean, n = small.mean(0), float(len(small))
        self._steps += 1
        self._within += (small - mean).square().sum().item()
        self._freedom += n - 1
        if self._steps == 1:
            self._n, self._mean = n, mean
        else:  # Welford's update of the variance between steps
            away = mean - self._mean
            total = self._n + n
            self._between += away.square().sum().item() * self._n * n / total
            self._mean, self._n = self._mean + away * (n / total), total
        if self._steps < FEWEST_STEPS or self._within <= 0:
            return {}
        ratio = (self._between / (self._steps - 1)) / (self._within / self._freedom)
        return {"data/step_likeness": ratio}
