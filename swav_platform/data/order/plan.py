"""The order in which samples are consumed: a pure function of a few numbers.

An epoch contains each sample once. Consecutive samples form blocks, which are read together. The blocks are permuted; `window`
consecutive permuted blocks form a window, whose samples are permuted individually. So each row can be computed without the rows
before it, each row mixes many parts of the data set, and neighbouring bytes are read together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from swav_platform.data.order.permutation import Int64s, Permutation, hashes, key, shuffled

_BLOCKS, _WINDOW, _REPLACEMENT = 1, 2, 3  # purposes of a random key


@dataclass(frozen=True)
class PlanSpec:
    """Everything that determines the order. A block has `block` consecutive samples, a window has `window` blocks."""

    samples: int
    seed: int
    row_size: int
    block: int = 16
    window: int = 64

    def __post_init__(self) -> None:
        for name in ("samples", "row_size", "block", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def blocks(self) -> int:
        return -(-self.samples // self.block)

    @property
    def missing(self) -> int:
        """Number of samples by which the last block is short."""
        return self.blocks * self.block - self.samples


@dataclass(frozen=True)
class RowSpec:
    """The samples of a row. Columns have one entry per position; R = row size."""

    row: int
    positions: np.ndarray  # int64 [R]: row*R .. row*R+R-1
    samples: np.ndarray  # int64 [R]: sample numbers
    filler: np.ndarray  # bool [R]: position past the epoch's end, filled with a sample from its start


class Plan:
    """Random access to the order of a PlanSpec, in the time and memory of one window."""

    def __init__(self, spec: PlanSpec) -> None:
        self.spec = spec
        self.rows_per_epoch = -(-spec.samples // spec.row_size)

    def row(self, row: int) -> RowSpec:
        """Row `row` >= 0 of the infinite order."""
        epoch, offsets = self._offsets(row)
        inside = offsets % self.spec.samples  # the last row is filled up from the epoch's start
        samples = _samples(self.spec, epoch, inside)
        positions = np.arange(row * self.spec.row_size, (row + 1) * self.spec.row_size, dtype=np.int64)
        return RowSpec(row, positions, samples, offsets >= self.spec.samples)

    def replacement(self, position: int, attempt: int) -> int:
        """The replacement sample of a position: another sample of the same window, if there is one."""
        row, slot = divmod(position, self.spec.row_size)
        epoch, offsets = self._offsets(row)
        return replacement_at(self.spec, epoch * self.spec.samples + int(offsets[slot]) % self.spec.samples, position, attempt)

    def chunks(self, first_row: int, last_row: int) -> list[tuple[int, int]]:
        """Rows first_row .. last_row-1 as half-open ranges, each within one window."""
        cuts, row = [first_row], first_row
        while row < last_row:
            epoch = row // self.rows_per_epoch
            end = min(last_row, (epoch + 1) * self.rows_per_epoch)
            offsets = (np.arange(row, end, dtype=np.int64) - epoch * self.rows_per_epoch) * self.spec.row_size
            windows = window_of(self.spec, epoch, offsets)
            cuts += (np.flatnonzero(np.diff(windows)) + row + 1).tolist()
            cuts.append(end)
            row = end
        return list(pairwise(cuts))

    @property
    def rows_once(self) -> int:
        """Number of rows before a sample repeats."""
        return self.spec.samples // self.spec.row_size

    def _offsets(self, row: int) -> tuple[int, Int64s]:
        """Epoch of a row, and how far from the epoch's beginning each position is; past its end for filler."""
        if row < 0:
            raise ValueError(f"rows are numbered from 0, got {row}")
        epoch, row_of_epoch = divmod(row, self.rows_per_epoch)
        first = row_of_epoch * self.spec.row_size
        return epoch, np.arange(first, first + self.spec.row_size, dtype=np.int64)


def samples_at(spec: PlanSpec, places: Int64s) -> Int64s:
    """Sample numbers at places of the infinite order of epochs without fillers."""
    epochs, offsets = places // spec.samples, places % spec.samples
    samples = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        samples[here] = _samples(spec, epoch, offsets[here])
    return samples


def replacement_at(spec: PlanSpec, place: int, position: int, attempt: int) -> int:
    """Another sample from the window of a place of the infinite order, if there is one."""
    epoch, inside = divmod(place, spec.samples)
    window = int(window_of(spec, epoch, np.array([inside], np.int64))[0])
    members = _window(spec, epoch, window)
    own = inside - _start(spec, epoch, window)
    if len(members) == 1:
        return int(members[0])
    drawn = int(hashes(key(spec.seed, _REPLACEMENT, position), np.array([attempt], np.uint64))[0])
    return int(members[(own + 1 + drawn % (len(members) - 1)) % len(members)])


def _samples(spec: PlanSpec, epoch: int, offsets: Int64s) -> Int64s:
    """Sample numbers at offsets from an epoch's start."""
    windows = window_of(spec, epoch, offsets)
    samples = np.empty_like(offsets)
    for window in np.unique(windows).tolist():
        here = windows == window
        samples[here] = _window(spec, epoch, window)[offsets[here] - _start(spec, epoch, window)]
    return samples


@lru_cache(16)
def _epoch(spec: PlanSpec, epoch: int) -> tuple[Permutation, int]:
    """The epoch's permutation of blocks, and the place of the last block, which may be short."""
    blocks = Permutation((spec.seed, _BLOCKS, epoch), spec.blocks)
    return blocks, int(blocks.inverse(np.array([spec.blocks - 1]))[0])


@lru_cache(64)
def _window(spec: PlanSpec, epoch: int, window: int) -> Int64s:
    """Sample numbers of a window in consumption order."""
    first = window * spec.window
    places = np.arange(first, min(first + spec.window, spec.blocks), dtype=np.int64)
    blocks = _epoch(spec, epoch)[0].forward(places)
    samples = (blocks[:, None] * spec.block + np.arange(spec.block)).ravel()
    samples = samples[samples < spec.samples]
    return samples[shuffled(key(spec.seed, _WINDOW, epoch, window), len(samples))]


def window_of(spec: PlanSpec, epoch: int, offsets: Int64s) -> Int64s:
    """The window of each offset from the epoch's start. Offsets after the short block are shifted by `missing`."""
    short = _epoch(spec, epoch)[1]
    after = offsets >= (short + 1) * spec.block - spec.missing
    return (offsets + after * spec.missing) // (spec.block * spec.window)


def _start(spec: PlanSpec, epoch: int, window: int) -> int:
    """The offset of a window's first sample."""
    place = window * spec.window
    return place * spec.block - (spec.missing if place > _epoch(spec, epoch)[1] else 0)
