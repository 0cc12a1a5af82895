"""Activation checkpointing: memory for time. A block's inner activations are made again in the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swav_platform.models.normalisation import not_recording


def through(stage: nn.Sequential, x: Tensor, checkpointing: bool) -> Tensor:
    """`x` through the blocks of `stage`; with `checkpointing` only what lies between them is kept (Chen et al. 2016, arXiv 1604.06174)."""
    if not checkpointing or not torch.is_grad_enabled():
        return stage(x)
    for block in stage:
        x = _again(block, x)
    return x


def _again(block: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), not_recording(block)  # the second time its batch statistics are known already

    found: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return found
