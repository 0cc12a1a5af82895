"""Batch normalisation over a row or over a step, with the same results for any number of ranks.

Batch statistics are those of one forward pass, which is one row at one resolution. After `across`, they are those of the step's
rows on all ranks. Running statistics are updated once per step, with the mean over the step's passes on all ranks: `collect`
returns this rank's sums, the training step adds them up over ranks together with the gradients, and `commit` applies the total.

Grey images (positions without a usable image) are normalised like the others, but statistics leave them out; see `counting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sum(Protocol):
    """The one collective that normalisation needs."""

    @property
    def size(self) -> int: ...

    def sum(self, x: Tensor) -> Tensor: ...


class RowBatchNorm(nn.Module):
    """Replaces BatchNorm1d and BatchNorm2d, with torch's parameter and buffer names, eps and momentum.

    Input: [n, C] or [n, C, H, W], float32, or bfloat16 or float16 under autocast. Statistics are float32.
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
        self.ranks: Sum | None = None  # set if statistics are those of all ranks
        self.recording = True
        self.counted: Tensor | None = None  # bool [images]: those that statistics count; None for all
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.register_buffer("scratch", _empty_statistics(channels), persistent=False)  # one pass: means, variances, 1
        self.register_buffer("sums", torch.zeros(2 * channels + 1), persistent=False)  # sum of scratch over passes

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if self.ranks is not None or self.counted is not None:
            out, statistics = _over_ranks(x, self.weight, self.bias, self.eps, self.ranks or _OneRank(), self._mask(x))
            if self.recording:
                self.sums += statistics
            return out
        # With momentum 1, the fused kernel writes the batch's mean and unbiased variance to the scratch buffer.
        mean, var, _ = self.scratch.split([self.channels, self.channels, 1])
        out = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        if self.recording:
            self.sums += self.scratch
        return out

    def _mask(self, x: Tensor) -> Tensor | None:
        """Which entries of `x` [n, …] count, for broadcasting; n is a multiple of the images, view by view."""
        if self.counted is None:
            return None
        return self.counted.repeat(len(x) // len(self.counted)).view(-1, *[1] * (x.dim() - 1))

    def reset(self) -> None:
        """Sets weight 1, bias 0, running mean 0, running variance 1, and clears the collected sums."""
        with torch.no_grad():
            for ones in (self.weight, self.running_var):
                ones.fill_(1)
            for zeros in (self.bias, self.running_mean, self.num_batches_tracked, self.sums):
                zeros.zero_()
            self.scratch.copy_(_empty_statistics(self.channels))

    def extra_repr(self) -> str:
        return str(self.channels)


class _OneRank:
    """No other ranks."""

    size = 1

    def sum(self, x: Tensor) -> Tensor:
        return x


class _OverRanks(torch.autograd.Function):
    """Batch normalisation with the statistics of all ranks, which may hold different numbers of samples.

    The forward pass sums 2C + 1 float64 numbers over ranks: in float32, variances computed from sums would lose their precision.
    The backward pass sums 2C float32 numbers. Gradients of weight and bias are this rank's part; the training step sums them
    over ranks. Also returns the statistics that `sums` accumulates. mask: see `RowBatchNorm._mask`; where nothing counts on any rank, the
    statistics are mean 0, variance 1 and no pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: Sum, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        shape, dims = _by_channel(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        counts = wide if mask is None else wide[mask.flatten()]
        if len(counts):
            var, mean = (t.double() for t in torch.var_mean(counts, dims, correction=0))
        else:
            var = mean = x.new_zeros(x.shape[1], dtype=torch.float64)
        own = x.new_full([1], counts.numel() // x.shape[1], dtype=torch.float64)
        first, second, count = ranks.sum(torch.cat([own * mean, own * (var + mean**2), own])).tensor_split(
            [len(mean), 2 * len(mean)]
        )
        passes = (count > 0).to(count)
        count = count.clamp_min(1)
        mean = first / count
        var = (second / count - mean**2).clamp_min(0) + (1 - passes)
        rstd = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean.to(wide), rstd.to(wide), count.to(wide), mask)
        ctx.ranks = ranks
        scale = weight * rstd.to(weight)
        out = wide * scale.view(shape) + (bias - mean.to(bias) * scale).view(shape)
        unbiased = var * count / (count - 1).clamp_min(1)
        statistics = (torch.cat([mean, unbiased, torch.ones_like(count)]) * passes).to(weight)
        ctx.mark_non_differentiable(statistics)
        return out.to(x.dtype), statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, count, mask = ctx.saved_tensors
        shape, dims = _by_channel(x)
        grad = grads[0].to(mean.dtype)
        normalised = (x.to(mean.dtype) - mean.view(shape)) * rstd.view(shape)
        by_bias, by_weight = grad.sum(dims), (grad * normalised).sum(dims)
        all_bias, all_weight = ctx.ranks.sum(torch.cat([by_bias, by_weight])).div(count).view(2, -1)
        by_statistics = all_bias.view(shape) + normalised * all_weight.view(shape)
        if mask is not None:
            by_statistics = by_statistics * mask
        into_x = (grad - by_statistics) * (weight * rstd).view(shape)
        return into_x.to(x.dtype), by_weight.to(weight.dtype), by_bias.to(weight.dtype), None, None, None


_over_ranks: Callable[..., tuple[Tensor, Tensor]] = _OverRanks.apply


def _by_channel(x: Tensor) -> tuple[list[int], list[int]]:
    """The shape that broadcasts a vector [C] against `x`, and the dimensions of `x` other than channels."""
    dims = [d for d in range(x.dim()) if d != 1]
    return [-1 if d == 1 else 1 for d in range(x.dim())], dims


def _empty_statistics(channels: int) -> Tensor:
    return torch.cat([torch.zeros(2 * channels), torch.ones(1)])


def _layers(module: nn.Module) -> Iterator[RowBatchNorm]:
    return (m for m in module.modules() if isinstance(m, RowBatchNorm))


def across(module: nn.Module, ranks: Sum) -> None:
    """From now on, batch statistics of the layers in `module` are those of all `ranks`."""
    for layer in _layers(module):
        layer.ranks = ranks if ranks.size > 1 else None


@contextmanager
def counting(module: nn.Module, counted: Tensor | None) -> Iterator[None]:
    """In this context, statistics count only these images of a pass: bool [images], the same in each view. None counts all."""
    layers = list(_layers(module)) if counted is not None else []
    for layer in layers:
        layer.counted = counted
    try:
        yield
    finally:
        for layer in layers:
            layer.counted = None


def counted_in(module: nn.Module) -> Tensor | None:
    """The images that the layers of `module` count now."""
    return next((layer.counted for layer in _layers(module)), None)


@contextmanager
def not_recording(module: nn.Module) -> Iterator[None]:
    """Forward passes in this context do not count towards running statistics. Used for recomputed passes."""
    for layer in _layers(module):
        layer.recording = False
    try:
        yield
    finally:
        for layer in _layers(module):
            layer.recording = True


def collect(module: nn.Module) -> Tensor:
    """Returns and clears the sums since the last call: for each layer means [C], variances [C] and the number of passes [1]."""
    sums = [layer.sums for layer in _layers(module)]
    if not sums:
        return torch.zeros(0)
    collected = torch.cat(sums)
    torch._foreach_zero_(sums)
    return collected


@torch.no_grad()
def commit(module: nn.Module, sums: Tensor) -> None:
    """Updates running statistics with the mean over passes of `sums`, the `collect` of all ranks added up.

    Handles all layers in a fixed number of operations, without synchronising with a GPU or starting kernels for each layer.
    """
    layers = list(_layers(module))
    if not layers:
        return
    sizes = [size for layer in layers for size in (2 * layer.channels, 1)]
    pieces = sums.split(sizes)
    values, counts = pieces[::2], pieces[1::2]
    passes = torch.cat([count.expand(len(value)) for count, value in zip(counts, values, strict=True)])
    means = torch.cat(values) / passes.clamp_min(1)
    channels = [layer.channels for layer in layers for _ in range(2)]  # means, variances
    shares = (passes > 0).to(means.dtype).split(channels)
    torch._foreach_mul_(shares, [layer.momentum for layer in layers for _ in range(2)])
    running = [t for layer in layers for t in (layer.running_mean, layer.running_var)]
    torch._foreach_lerp_(running, means.split(channels), shares)
    moved = (torch.cat(counts) > 0).long()
    torch._foreach_add_([layer.num_batches_tracked for layer in layers], moved.unbind())
