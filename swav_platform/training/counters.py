"""Costs and outcomes of a step's data, as numbers that are summed over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.look import Look
from swav_platform.rows.layout import Costs

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row


@dataclass(frozen=True)
class Counters:
    """Sums over the rows of one or more steps on all ranks."""

    outcomes: tuple[int, ...] = (0,) * len(Outcome)  # number of positions by the outcome of their own sample
    looks: tuple[int, ...] = (0,) * len(Look)  # number of positions by what is odd about the image that fills them
    costs: Costs = field(default_factory=Costs)
    trained: int = 0  # number of positions with an image, own or replacement; the others are grey and have weight 0

    @property
    def images(self) -> int:
        """Number of positions, including fillers, since making them costs time too."""
        return sum(self.outcomes)

    @property
    def reasons(self) -> dict[Outcome, int]:
        """Number of quarantined positions (own sample unusable) by reason, without reasons that did not occur."""
        return {outcome: self.outcomes[outcome] for outcome in Outcome if outcome > Outcome.FILLER and self.outcomes[outcome]}

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())

    @property
    def blank(self) -> int:
        """Number of positions whose image is nearly black, nearly white or of one colour."""
        return sum(count for look, count in zip(Look, self.looks, strict=True) if look.blank)

    def __add__(self, other: Counters) -> Counters:
        return from_sum([a + b for a, b in zip(_flat(self), _flat(other), strict=True)])

    def metrics(self) -> dict[str, float]:
        """MLflow metrics: milliseconds and bytes per image, and quarantined positions by reason, and
        odd-looking images by kind."""
        images = max(self.images, 1)
        return {
            "data/read_ms": 1000 * self.costs.read_seconds / images,
            "data/decode_ms": 1000 * self.costs.decode_seconds / images,
            "data/views_ms": 1000 * self.costs.views_seconds / images,
            "data/image_bytes": self.costs.read_bytes / images,
            **{f"data/quarantined/{outcome.word}": float(count) for outcome, count in self.reasons.items()},
            **{f"data/looks/{look.word}": float(count) for look, count in zip(Look, self.looks, strict=True) if count},
        }


def to_sum(rows: Sequence[Row]) -> list[float]:
    """This rank's part of a step's counters. The sum over ranks is in float32, which is exact for counts up to 2^24."""
    outcomes = np.bincount(np.concatenate([row.outcome for row in rows]), minlength=len(Outcome))
    seen = np.concatenate([row.look for row in rows])
    looks = [np.count_nonzero(seen & look) for look in Look]
    costs = map(sum, zip(*(astuple(row.costs) for row in rows), strict=True))
    return [*map(float, outcomes), *map(float, looks), *costs, float(sum(np.count_nonzero(row.weight) for row in rows))]


def from_sum(numbers: Sequence[float]) -> Counters:
    """Counters from the sum of `to_sum` over ranks."""
    first, second = len(Outcome), len(Outcome) + len(Look)
    counts = [int(n) for n in numbers[:second]]
    return Counters(tuple(counts[:first]), tuple(counts[first:]), Costs(*numbers[second:-1]), int(numbers[-1]))


def _flat(counters: Counters) -> list[float]:
    return [*counters.outcomes, *counters.looks, *astuple(counters.costs), counters.trained]
