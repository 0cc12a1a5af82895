"""Splits a plan into L streams by renumbering rows, so that parallel pipelines read different windows.

Row k belongs to stream k mod L. Streams take the plan's rows in groups of about a window; rows stay within their epoch. With
L = 1 nothing changes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from swav_platform.data.order.mix import MixedPlan
from swav_platform.data.order.plan import Plan, RowSpec


class Streams:
    """A plan as `count` streams. Like the plan, a pure function with random access in constant time."""

    def __init__(self, plan: Plan | MixedPlan, count: int) -> None:
        if count < 1:
            raise ValueError(f"streams must be at least 1, got {count}")
        self.plan, self.count = plan, count
        self._group = max(1, plan.spec.block * plan.spec.window // plan.spec.row_size)

    def row(self, row: int) -> RowSpec:
        """Row `row` >= 0: its positions with the samples of another row of the plan."""
        planned, size = self.plan.row(self._planned(row)), self.plan.spec.row_size
        positions = np.arange(row * size, (row + 1) * size, dtype=np.int64)
        return RowSpec(row, positions, planned.samples, planned.filler)

    def replacement(self, position: int, attempt: int) -> int:
        """The replacement sample of a position: another sample of the same window, if there is one."""
        row, slot = divmod(position, self.plan.spec.row_size)
        return self.plan.replacement(self._planned(row) * self.plan.spec.row_size + slot, attempt)

    def chunks(self, stream: int, first: int, last: int) -> list[range]:
        """The rows of a stream among first .. last-1, in pieces of one window each."""
        if self.count == 1:
            return [range(a, b) for a, b in self.plan.chunks(first, last)]
        rows = range(first + (stream - first) % self.count, last, self.count)
        planned = [self._planned(row) for row in rows]
        cuts = [i for i in range(1, len(rows)) if planned[i] != planned[i - 1] + 1 or self._places(rows[i])[1] == 0]
        return [rows[a:b] for a, b in pairwise([0, *cuts, len(rows)]) if a < b]

    def _planned(self, row: int) -> int:
        return self._places(row)[0]

    def _places(self, row: int) -> tuple[int, int]:
        """The plan's row for `row`, and its place in its group.

        An epoch's rows are cut into sections of L groups; in a section, row i is row (i div L) of group (i mod L). The last
        section has shorter groups. Leftover rows, fewer than L, keep their numbers.
        """
        if row < 0:
            raise ValueError(f"rows are numbered from 0, got {row}")
        if self.count == 1:
            return row, row
        _, inside = divmod(row, self.plan.rows_per_epoch)
        start = row - inside
        section, place = divmod(inside, self.count * self._group)
        offset = section * self.count * self._group
        group = min(self._group, (self.plan.rows_per_epoch - offset) // self.count)
        if place >= group * self.count:
            return row, 0
        turn, stream = divmod(place, self.count)
        return start + offset + stream * group + turn, turn
