"""Stops a run whose images can't be used: too large a share of all its positions, or of the last ones, or none at all in the end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from swav_platform.training.counters import Counters

FEWEST_POSITIONS = 1000  # a share of fewer positions is not reliable
WINDOW = 4000  # positions; unlike the share of all positions, that of the last ones shows a late failure


@dataclass
class Recent:
    """The last steps, of at least WINDOW positions together, or those since the run was started or resumed."""

    window: int = WINDOW
    _steps: deque[tuple[int, int, int]] = field(default_factory=deque)  # positions, quarantined ones, ones with an image
    positions: int = 0
    quarantined: int = 0
    trained: int = 0

    def add(self, counters: Counters) -> None:
        step = counters.images, counters.quarantined, counters.trained
        self._steps.append(step)
        self._count(step, 1)
        while self.positions - self._steps[0][0] >= self.window:
            self._count(self._steps.popleft(), -1)

    def _count(self, step: tuple[int, int, int], sign: int) -> None:
        self.positions += sign * step[0]
        self.quarantined += sign * step[1]
        self.trained += sign * step[2]


def too_many(limit: float, positions: int, quarantined: int, samples: int, recent: Recent) -> str | None:
    """Of which positions more than the share `limit` can't be used; None if that is so neither for all nor for the last ones.

    positions, quarantined: of the whole run. samples: size of the index; an epoch is enough to judge.
    """
    if positions >= min(FEWEST_POSITIONS, samples) and quarantined > limit * positions:
        return f"{quarantined:,} of the first {positions:,} images"
    if recent.positions >= min(recent.window, samples) and recent.quarantined > limit * recent.positions:
        return f"{recent.quarantined:,} of the last {recent.positions:,} images"
    return None
