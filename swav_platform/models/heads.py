"""What stands on an encoder: a projection to the unit sphere and the prototypes on it (Caron et al. 2020, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.models.normalisation import RowBatchNorm


def projection_head(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Features [n, features] to projections [n, dim], not yet of unit length."""
    return nn.Sequential(nn.Linear(features, hidden), RowBatchNorm(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


def prototypes(dim: int, count: int) -> nn.Linear:
    """Linear layer without bias; its rows [count, dim] are the prototypes."""
    return nn.Linear(dim, count, bias=False)


def unit(x: Tensor) -> Tensor:
    """`x` [..., D] at unit length, in float32 whatever precision the network ran in (float64 stays)."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
