"""One step: this rank's rows through the network, codes over all ranks, one sum of gradients, new weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from swav_platform.methods.comm import Comm
from swav_platform.methods.method import Method, RowOutputs, StepOutputs, Targets
from swav_platform.models import normalisation
from swav_platform.training.collectives import sum_together
from swav_platform.training.health import check_finite
from swav_platform.training.optimisers import AnyOptimiser

if TYPE_CHECKING:
    from swav_platform.images.row import Row

Prepare = Callable[["Row"], list[Tensor]]
"""A row to what the network takes: per resolution [V_g * R, 3, H, W] on the device, view by view."""


@dataclass(frozen=True)
class Learner:
    """All that learns."""

    network: nn.Module
    method: Method
    optimiser: AnyOptimiser


@dataclass(frozen=True)
class StepReport:
    """loss: mean over the step's images; extra: sums over ranks of what was given; metrics: only where asked for."""

    loss: float
    extra: list[float]
    metrics: dict[str, float] = field(default_factory=dict)


def train_step(
    step: int,
    rows: Sequence[Row],
    learner: Learner,
    comm: Comm,
    prepare: Prepare,
    *,
    batch: int,
    lr: float,
    precision: Literal["fp32", "bf16"] = "fp32",
    extra: Sequence[float] = (),
    metrics: bool = False,
) -> StepReport:
    """Moves the weights by the step whose rows `rows` are this rank's share of.

    The loss is the sum over images of weight x loss, divided by `batch` (images of the step on all ranks). Losses, gradients and
    statistics are functions of the step's rows: ranks may hold different numbers of them.
    extra: numbers to sum over ranks on the way, at most 2^24 each. Raises UserError, before any weight moves, for a loss or
    a gradient that is no number.
    """
    network, method, optimiser = learner.network, learner.method, learner.optimiser
    network.train()
    optimiser.zero_grad()
    outputs = StepOutputs(step, tuple(_forward(network, row, prepare, precision) for row in rows))
    targets = method.targets(outputs, comm)
    loss = _backward(method, outputs, targets, batch)

    named = [(name, p) for name, p in network.named_parameters() if p.grad is not None]
    statistics = normalisation.collect(network).to(loss)
    counts = loss.new_tensor(list(extra))
    health = method.health_sums(outputs, targets).to(loss) if metrics else loss.new_zeros(0)
    sum_together([*_gradients(named), loss, statistics, counts, health], comm)
    value = loss.item()
    grad_norm = torch.nn.utils.get_total_norm(_gradients(named)).item()
    check_finite(step, value, grad_norm, lr)

    frozen = method.frozen(step)
    for name, p in named:
        if name in frozen:
            p.grad = None
    found = {"train/grad_norm": grad_norm} | method.health(health, value) if metrics else {}
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    normalisation.commit(network, statistics)
    method.after_step(outputs, comm)
    return StepReport(value, counts.tolist(), found)


def _forward(network: nn.Module, row: Row, prepare: Prepare, precision: str) -> RowOutputs:
    views = prepare(row)
    with torch.autocast(views[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = network(views, len(row.weight))
    sample = torch.tensor(row.sample, device=outputs[0].device)
    weight = torch.tensor(row.weight, dtype=outputs[0].dtype, device=outputs[0].device)
    return RowOutputs(int(row.row), sample, weight, *outputs)


def _backward(method: Method, outputs: StepOutputs, targets: Targets, batch: int) -> Tensor:
    """This rank's part of the loss. Row by row, so that a row's graph is gone before the next one's gradients are made."""
    total = outputs.rows[0].weight.new_zeros(())
    for row in outputs.rows:
        loss = (row.weight * method.loss(row, targets)).sum() / batch
        loss.backward()
        total += loss.detach()
    return total


def _gradients(named: Sequence[tuple[str, Any]]) -> list[Tensor]:
    return [p.grad for _, p in named]
