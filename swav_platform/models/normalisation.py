"""Batch normalisation over one row: no communication, and the same numbers for any count of ranks.

Batch statistics are those of what a forward pass is given (one row at one resolution). Running statistics move once
a step, by the mean over the step's rows and passes on all ranks: `collect` gives this rank's sums, which travel with
the gradients, and `commit` applies what came back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RowBatchNorm(nn.Module):
    """BatchNorm1d and BatchNorm2d in one, with torch's parameter and buffer names, eps and momentum.

    Input [n, C] or [n, C, H, W], float32 or (under autocast) bfloat16; statistics stay float32.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    scratch: Tensor
    sums: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.register_buffer("scratch", _nothing(channels), persistent=False)  # of one pass: means, variances, 1
        self.register_buffer("sums", torch.zeros(2 * channels + 1), persistent=False)  # of scratch over passes

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        # With momentum 1 the fused kernel leaves the batch's mean and (unbiased) variance in the scratch buffer.
        mean, var, _ = self.scratch.split([self.channels, self.channels, 1])
        out = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        self.sums += self.scratch
        return out

    def reset(self) -> None:
        """Weight 1, bias 0, statistics of a unit normal, nothing collected."""
        with torch.no_grad():
            for ones in (self.weight, self.running_var):
                ones.fill_(1)
            for zeros in (self.bias, self.running_mean, self.num_batches_tracked, self.sums):
                zeros.zero_()
            self.scratch.copy_(_nothing(self.channels))

    def extra_repr(self) -> str:
        return str(self.channels)


def _nothing(channels: int) -> Tensor:
    return torch.cat([torch.zeros(2 * channels), torch.ones(1)])


def _layers(module: nn.Module) -> Iterator[RowBatchNorm]:
    return (m for m in module.modules() if isinstance(m, RowBatchNorm))


def collect(module: nn.Module) -> Tensor:
    """Statistics since the last call, summed: per layer means [C], variances [C], number of passes [1]. Starts afresh."""
    sums = [layer.sums for layer in _layers(module)]
    collected = torch.cat(sums) if sums else torch.zeros(0)
    for one in sums:
        one.zero_()
    return collected


@torch.no_grad()
def commit(module: nn.Module, sums: Tensor) -> None:
    """Moves running statistics by the mean of `sums`, the `collect` of all ranks added up."""
    start = 0
    for layer in _layers(module):
        size = 2 * layer.channels
        mean, var = (sums[start : start + size] / sums[start + size]).view(2, -1)
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(var, layer.momentum)
        layer.num_batches_tracked += 1
        start += size + 1
