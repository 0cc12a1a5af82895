"""A step's rows through the network and back: with all graphs held until codes are known, or one row's at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from swav_platform.methods.method import Method, RowOutputs, StepOutputs, Targets
from swav_platform.models.normalisation import not_recording

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row

Prepare = Callable[["Row"], list[Tensor]]
"""A row to what the network takes: per resolution [V_g * R, 3, H, W] on the device, view by view."""

Precision = Literal["fp32", "bf16", "fp16"]
Accumulate = Literal["hold", "recompute"]
_LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Passes:
    """How rows go through `network`. accumulate: what of them is kept between `look` and `backward`. together: all in one pass,
    for a batch norm over the step; each row for itself otherwise. learns: some weight is to move; where none is, rows go
    forward alone, once (`hold`), without graphs."""

    network: nn.Module
    prepare: Prepare
    precision: Precision = "fp32"
    accumulate: Accumulate = "hold"
    together: bool = False
    learns: bool = True

    def look(self, rows: Sequence[Row]) -> tuple[RowOutputs, ...]:
        """What codes are made from. With `recompute` there is no graph and running statistics stay: all views take part even so,
        since the projection head's batch norm sees them together, and codes are to be those of `hold` to the last bit."""
        with ExitStack() as stack:
            if self.accumulate == "recompute" or not self.learns:
                stack.enter_context(torch.no_grad())
            if self.accumulate == "recompute":
                stack.enter_context(not_recording(self.network))
            return tuple(self._forward(rows))

    def backward(
        self, method: Method, rows: Sequence[Row], outputs: StepOutputs, targets: Targets, batch: int, scaler: GradScaler
    ) -> Tensor:
        """Adds up gradients, where a weight is to move, and returns this rank's part of the loss. Row by row, so that a row's
        graph is gone before the next one's gradients are made."""
        graphs = self._again(rows) if self.accumulate == "recompute" else iter(outputs.rows)
        if self.together:
            return self._backward([(row, method.loss(row, targets)) for row in graphs], batch, scaler)
        return sum(
            (self._backward([(row, method.loss(row, targets))], batch, scaler) for row in graphs),
            start=outputs.rows[0].weight.new_zeros(()),
        )

    def _backward(self, losses: Sequence[tuple[RowOutputs, Tensor]], batch: int, scaler: GradScaler) -> Tensor:
        loss = torch.stack([(row.weight * of_image).sum() for row, of_image in losses]).sum() / batch
        if self.learns:
            scaler.scale(loss).backward()
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
            # Before the group's network: a copy from here to a GPU waits for all that was queued.
            samples = [torch.tensor(row.sample, device=device) for row in group]
            weights = [torch.tensor(row.weight, dtype=torch.float32, device=device) for row in group]
            low = _LOW.get(self.precision, torch.bfloat16)
            with torch.autocast(device.type, low, enabled=self.precision in _LOW):
                outputs = self.network(views, sum(sizes))
            of_rows = zip(*(of_all.split(sizes, dim=1) for of_all in outputs), strict=True)
            for row, sample, weight, own in zip(group, samples, weights, of_rows, strict=True):
                yield RowOutputs(int(row.row), sample, weight.to(own[0].dtype), *own)


def _joined(rows: Sequence[list[Tensor]], sizes: Sequence[int]) -> list[Tensor]:
    """Views of several rows as those of one: per resolution [V_g * sum of sizes, 3, H, W], view by view."""
    if len(rows) == 1:
        return rows[0]
    groups = zip(*rows, strict=True)
    return [
        torch.cat([views.unflatten(0, (-1, n)) for views, n in zip(group, sizes, strict=True)], dim=1).flatten(0, 1)
        for group in groups
    ]
