"""Initial weights from a seed and a name alone: identical on every rank and machine, independent of torch's global generator."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from swav_platform.models.normalisation import RowBatchNorm

M = TypeVar("M", bound=nn.Module)


def seed_of(key: str) -> int:
    """63-bit seed for a torch generator: the first bits of the key's SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def initialised(build: Callable[[], M], seed: int, name: str) -> M:
    """The module that `build` returns, on the CPU, with weights drawn from (seed, name).

    `build` runs on the meta device, so it uses no memory and no global random numbers for weights that are replaced here.
    """
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu")
    initialise(module, seed, name)
    return module


@torch.no_grad()
def initialise(module: nn.Module, seed: int, name: str) -> None:
    """Draws all weights of `module` in place: He normal (fan out) for convolutions, torch's uniform rule for linear layers."""
    generator = torch.Generator().manual_seed(seed_of(f"{seed} {name}"))
    for part in module.modules():
        if isinstance(part, RowBatchNorm):
            part.reset()
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, nn.Linear):
            bound = 1 / math.sqrt(part.in_features)
            part.weight.uniform_(-bound, bound, generator=generator)
            if part.bias is not None:
                part.bias.uniform_(-bound, bound, generator=generator)
