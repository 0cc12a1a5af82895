"""Forward and backward passes of a step: with all graphs kept until the codes are known, or with one row's graph at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from swav_platform.methods.method import Method, RowOutputs, StepOutputs, Targets
from swav_platform.models.normalisation import counting, not_recording

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row

Prepare = Callable[["Row"], list[Tensor]]
"""Converts a row to the network's input: per resolution [V_g * R, 3, H, W] on the device, view by view."""

Precision = Literal["fp32", "bf16", "fp16", "auto"]
"""`auto` is replaced by `device.resolved` before training; left as it is, it means fp32."""

Accumulate = Literal["hold", "recompute"]
_LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Passes:
    """How rows pass through `network`.

    accumulate: whether graphs are kept between `look` and `backward`. together: one pass for all rows, for batch normalisation over
    the step; otherwise one pass per row. learns: whether any weight is trained; if not, rows pass forward only, without graphs.
    """

    network: nn.Module
    prepare: Prepare
    precision: Precision = "fp32"
    accumulate: Accumulate = "hold"
    together: bool = False
    learns: bool = True

    def look(self, rows: Sequence[Row]) -> tuple[RowOutputs, ...]:
        """The outputs that codes are computed from.

        With `recompute` there is no graph and running statistics do not change. All views take part even so: the projection head's
        batch norm sees them together, and the codes must be bit-equal to those of `hold`.
        """
        with ExitStack() as stack:
            if self.accumulate == "recompute" or not self.learns:
                stack.enter_context(torch.no_grad())
            if self.accumulate == "recompute":
                stack.enter_context(not_recording(self.network))
            return tuple(self._forward(rows))

    def backward(
        self,
        method: Method,
        rows: Sequence[Row],
        outputs: StepOutputs,
        targets: Targets,
        batch: int,
        scaler: GradScaler,
        before_last: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Accumulates gradients if any weight is trained, and returns this rank's part of the loss. Works row by row, so that a row's
        graph is freed before the next backward pass. before_last: called before the last of them."""
        graphs = self._again(rows) if self.accumulate == "recompute" else iter(outputs.rows)
        if self.together:
            losses = [(row, method.loss(row, targets)) for row in graphs]
            before_last()
            return self._backward(losses, batch, scaler)
        total = outputs.rows[0].weight.new_zeros(())
        for number, row in enumerate(graphs, start=1):
            loss = method.loss(row, targets)
            if number == len(rows):
                before_last()
            total = total + self._backward([(row, loss)], batch, scaler)
        return total

    def _backward(self, losses: Sequence[tuple[RowOutputs, Tensor]], batch: int, scaler: GradScaler) -> Tensor:
        loss = torch.stack([(row.weight * of_image).sum() for row, of_image in losses]).sum() / batch
        if self.learns:
            torch.autograd.backward(scaler.scale(loss))
        return loss.detach()

    def _again(self, rows: Sequence[Row]) -> Iterator[RowOutputs]:
        for row in rows:
            yield from self._forward([row])

    def _forward(self, rows: Sequence[Row]) -> Iterator[RowOutputs]:
        groups = [rows] if self.together else [[row] for row in rows]
        for group in groups:
            sizes = [len(row.weight) for row in group]
            views = _joined([self.prepare(row) for row in group], sizes)
            device = views[0].device
            # Before the forward pass: a copy to a GPU waits for all queued kernels.
            samples = [torch.tensor(row.sample, device=device) for row in group]
            weights = [torch.tensor(row.weight, dtype=torch.float32, device=device) for row in group]
            whole = all(bool((np.asarray(row.weight) > 0).all()) for row in group)
            counted = None if whole else torch.cat(weights) > 0  # grey images do not change statistics
            low = _LOW.get(self.precision, torch.bfloat16)
            with torch.autocast(device.type, low, enabled=self.precision in _LOW), counting(self.network, counted):
                outputs = self.network(views, sum(sizes))
            of_rows = zip(*(of_all.split(sizes, dim=1) for of_all in outputs), strict=True)
            for row, sample, weight, own in zip(group, samples, weights, of_rows, strict=True):
                yield RowOutputs(int(row.row), sample, weight.to(own[0].dtype), *own)


def _joined(rows: Sequence[list[Tensor]], sizes: Sequence[int]) -> list[Tensor]:
    """Concatenates the views of several rows: per resolution [V_g * sum of sizes, 3, H, W], view by view."""
    if len(rows) == 1:
        return rows[0]
    groups = zip(*rows, strict=True)
    return [
        torch.cat([views.unflatten(0, (-1, n)) for views, n in zip(group, sizes, strict=True)], dim=1).flatten(0, 1)
        for group in groups
    ]
