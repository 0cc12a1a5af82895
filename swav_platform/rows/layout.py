"""The layout of a row: R positions in one buffer, and the outcome of each position.

The buffer holds the views of each group, uint8 [V, R, H, W, 3], and then the parameters of each group, float32
[V, R, P] with the columns of `params.PARAMS`. It is sent as one Arrow value without being copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from swav_platform.config import Config
from swav_platform.data.ledger.outcomes import Event
from swav_platform.images.views.params import PARAMS

_ALIGN = 64


@dataclass(frozen=True)
class RowLayout:
    """The parts of a row's buffer. groups: (size, count) of each group of views."""

    row_size: int
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, config: Config) -> RowLayout:
        return cls(config.data.row_size, tuple((group.size, group.count) for group in config.views.values()))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each group's views, then of each group's parameters, then the end; in bytes, multiples of 64."""
        sizes = [count * self.row_size * size * size * 3 for size, count in self.groups]
        sizes += [count * self.row_size * len(PARAMS) * 4 for _, count in self.groups]
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + -(-size // _ALIGN) * _ALIGN)
        return tuple(offsets)

    @property
    def nbytes(self) -> int:
        return self.offsets[-1]

    def views(self, packed: np.ndarray) -> list[np.ndarray]:
        """Each group's views uint8 [V, R, H, W, 3] in a buffer uint8 [nbytes]."""
        return [
            self._part(packed, number, np.uint8, (count, self.row_size, size, size, 3))
            for number, (size, count) in enumerate(self.groups)
        ]

    def params(self, packed: np.ndarray) -> list[np.ndarray]:
        """Each group's parameters float32 [V, R, P] in a buffer uint8 [nbytes]."""
        return [
            self._part(packed, len(self.groups) + number, np.float32, (count, self.row_size, len(PARAMS)))
            for number, (_, count) in enumerate(self.groups)
        ]

    def _part(self, packed: np.ndarray, number: int, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        return np.ndarray(shape, dtype, packed.data, self.offsets[number])


@dataclass
class Costs:
    """The cost of making one row, in the attempt that succeeded. Otherwise equal rows may differ in it."""

    read_seconds: float = 0.0  # waiting for bytes; the first row of a window reads for all
    decode_seconds: float = 0.0
    views_seconds: float = 0.0  # the rest: crops, and colour changes where workers make them
    read_bytes: float = 0.0  # encoded bytes of all images tried


@dataclass
class Row:
    """R positions. `sample`, `key`, `shard`, `content` and `look` belong to the image that fills a position, `outcome` to the
    position's own sample. `content` and `look` are 0 where no image does.

    `stand_in_for` is the key of the own sample where a replacement sample fills the position. A position whose replacement
    samples failed too keeps its own names, is grey and has weight 0.
    """

    row: int
    views: list[np.ndarray]  # uint8 [V, R, H, W, 3] of each group, in `packed`
    params: list[np.ndarray]  # float32 [V, R, P] of each group, in `packed`
    position: np.ndarray  # int64 [R]
    sample: np.ndarray  # int64 [R]
    outcome: np.ndarray  # uint8 [R], values of Outcome
    weight: np.ndarray  # float32 [R]
    key: list[str]
    shard: list[str]  # base names
    stand_in_for: list[str | None]
    events: list[Event]
    packed: np.ndarray  # uint8 [nbytes]
    layout: RowLayout
    costs: Costs = field(default_factory=Costs)
    content: np.ndarray = field(
        default_factory=lambda: np.zeros(0, np.uint64)
    )  # [R], or [0] if unknown: xxh3-64 of the image's bytes
    look: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))  # [R], or [0] if unknown: values of Look
