"""Mixes several data sets into one order, in proportion to their weights.

The sequence of sources is periodic, so a table of one period gives the source of each position and its place in the order of that
source. Each source has a plan of its own and repeats its data as often as necessary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from math import lcm

import numpy as np

from swav_platform.data.order import plan
from swav_platform.data.order.permutation import Int64s, key
from swav_platform.data.order.plan import PlanSpec, RowSpec

_PERIOD = 10_000  # maximum period of the sequence of sources, in positions
_SOURCE = 4  # purpose of a random key; plan.py defines the others


@dataclass(frozen=True)
class Part:
    """A source: the samples first .. first+samples-1 of the index."""

    first: int
    samples: int
    weight: float


class MixedPlan:
    """Same interface as `Plan`. An epoch has as many positions as the index has samples; no row has fillers."""

    def __init__(self, spec: PlanSpec, parts: tuple[Part, ...]) -> None:
        self.spec, self.parts = spec, parts
        self.rows_per_epoch = -(-spec.samples // spec.row_size)
        self.counts = shares([part.weight for part in parts])
        self._sources = sequence(self.counts)  # int64 [period]: source of each position
        self._ranks = np.zeros_like(self._sources)  # int64 [period]: number of earlier positions with the same source
        for source, count in enumerate(self.counts):
            self._ranks[self._sources == source] = np.arange(count)
        self._period = len(self._sources)
        self._specs = [
            _own(spec, number, part, count / self._period)
            for number, (part, count) in enumerate(zip(parts, self.counts, strict=True))
        ]

    def row(self, row: int) -> RowSpec:
        """Row `row` >= 0 of the infinite order."""
        if row < 0:
            raise ValueError(f"rows are numbered from 0, got {row}")
        positions = np.arange(row * self.spec.row_size, (row + 1) * self.spec.row_size, dtype=np.int64)
        sources, places = self.places(positions)
        samples = np.empty_like(positions)
        for source in np.unique(sources).tolist():
            here = sources == source
            samples[here] = self.parts[source].first + plan.samples_at(self._specs[source], places[here])
        return RowSpec(row, positions, samples, np.zeros(len(positions), bool))

    def places(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """The source of each position, and its place in the infinite order of that source."""
        rounds, inside = positions // self._period, positions % self._period
        sources = self._sources[inside]
        return sources, rounds * np.asarray(self.counts)[sources] + self._ranks[inside]

    def replacement(self, position: int, attempt: int) -> int:
        """The replacement sample of a position: another one of the same source and window, if possible."""
        sources, places = self.places(np.array([position], np.int64))
        source = int(sources[0])
        return self.parts[source].first + plan.replacement_at(self._specs[source], int(places[0]), position, attempt)

    def chunks(self, first_row: int, last_row: int) -> list[tuple[int, int]]:
        """Half-open ranges of rows, cut where the window of the heaviest source changes.

        The windows of the other sources are proportional to their weights, so they change at about the same time.
        """
        if last_row <= first_row:
            return []
        heaviest = int(np.argmax(self.counts))
        spec = self._specs[heaviest]
        starts = np.arange(first_row, last_row, dtype=np.int64) * self.spec.row_size
        rounds, inside = starts // self._period, starts % self._period
        before = np.concatenate([[0], np.cumsum(self._sources == heaviest)])[inside]
        places = rounds * self.counts[heaviest] + before
        epochs, offsets = places // spec.samples, places % spec.samples
        windows = np.concatenate([plan.window_of(spec, int(epoch), offsets[epochs == epoch]) for epoch in np.unique(epochs)])
        changes = np.flatnonzero(np.diff(windows) | np.diff(epochs)) + 1 + first_row
        return list(pairwise([first_row, *changes.tolist(), last_row]))

    @cached_property
    def rows_once(self) -> int:
        """Number of rows before a sample repeats."""
        ends = []
        for source, part in enumerate(self.parts):
            rounds, rest = divmod(part.samples, self.counts[source])
            ends.append(rounds * self._period + int(np.flatnonzero(self._sources == source)[rest]))
        return min(ends) // self.spec.row_size


def shares(weights: list[float]) -> list[int]:
    """Positions of each source in a period, at least one. Exact for weights such as 0.7 and 0.3, else to 1 in 10,000."""
    total = sum(Fraction(str(weight)) for weight in weights)
    exact = [Fraction(str(weight)) / total for weight in weights]
    period = lcm(*(share.denominator for share in exact))
    if period <= _PERIOD:
        return [int(share * period) for share in exact]
    return [max(1, round(share * _PERIOD)) for share in exact]


def sequence(counts: list[int]) -> Int64s:
    """The source of each position of a period. Every prefix is less than one position off each source's share.

    Algorithm: among the eligible sources, take the one with the earliest deadline (Tijdeman 1980, "The chairman assignment
    problem").
    """
    share, most = np.asarray(counts, np.int64), 2 * len(counts) - 2
    period, taken = int(share.sum()), np.zeros(len(counts), np.int64)
    found = np.zeros(period, np.int64)
    for place in range(period if most else 0):
        claim = (share * (place + 1) - taken * period) * most  # in units of 1 / (period * most) positions
        soonest = np.where(claim >= period, (period * (most - 1) - claim) / share, np.inf)
        found[place] = int(np.argmin(soonest))
        taken[found[place]] += 1
    return found


def _own(spec: PlanSpec, number: int, part: Part, share: float) -> PlanSpec:
    return replace(
        spec, samples=part.samples, seed=key(spec.seed, _SOURCE, number), row_size=1, window=max(1, round(spec.window * share))
    )
