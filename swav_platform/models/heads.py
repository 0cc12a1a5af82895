"""Layers on top of an encoder: a projection to the unit sphere, and prototypes on it (Caron et al. 2020, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.models.normalisation import RowBatchNorm


def projection_head(features: int, hidden: int, dim: int, norm: str = "batch") -> nn.Sequential:
    """Maps features [n, features] to projections [n, dim], not normalised. norm: "batch", or "none" as published for RN50w5."""
    middle = [RowBatchNorm(hidden)] if norm == "batch" else []
    return nn.Sequential(nn.Linear(features, hidden), *middle, nn.ReLU(inplace=True), nn.Linear(hidden, dim))


def prototypes(dim: int, count: int) -> nn.Linear:
    """A linear layer without bias. The rows of its weight [count, dim] are the prototypes."""
    return nn.Linear(dim, count, bias=False)


def unit(x: Tensor) -> Tensor:
    """`x` [..., D] scaled to unit length, in float32 whatever the network's precision (float64 stays float64)."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
