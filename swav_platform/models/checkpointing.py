"""Activation checkpointing, shared by the encoders: less memory, one more forward pass (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swav_platform.models.normalisation import counted_in, counting, not_recording


def run_stage(stage: nn.Sequential, x: Tensor, checkpointing: bool) -> Tensor:
    """Applies the blocks of `stage` to `x`.

    With `checkpointing`, only activations between blocks are kept; the backward pass recomputes those inside a block.
    """
    if not checkpointing or not torch.is_grad_enabled():
        out: Tensor = stage(x)
        return out
    for block in stage:
        x = _checkpointed(block, x)
    return x


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    counted = counted_in(block)

    @contextmanager
    def again() -> Iterator[None]:
        with not_recording(block), counting(block, counted):  # the first pass has recorded the batch statistics already
            yield

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), again()

    out: Tensor = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out
