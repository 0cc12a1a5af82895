"""From what each rank holds of its own rows to the whole in the order of positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from swav_platform.methods.comm import Comm


def in_position_order(own: Mapping[int, Tensor], rows: range, comm: Comm) -> Tensor:
    """[len(rows), ...]: the entry [...] of each of `rows`, whichever rank has it; the same on each rank.

    own: row number -> entry; every row is one rank's, and every rank has one at least. One comm.sum, exact, since nothing
    but zeros is added to an entry.
    """
    whole = torch.zeros_like(next(iter(own.values()))).expand(len(rows), *next(iter(own.values())).shape).clone()
    for row, entry in own.items():
        whole[row - rows.start] = entry
    return comm.sum(whole)
