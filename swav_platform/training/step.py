"""One step: this rank's rows through the network, codes over all ranks, one sum of gradients, new weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from swav_platform.methods.comm import Comm
from swav_platform.methods.method import Method, StepOutputs
from swav_platform.models import normalisation
from swav_platform.training.collectives import sum_together
from swav_platform.training.health import check_finite
from swav_platform.training.optimisation.averages import Averages
from swav_platform.training.optimisation.optimisers import AnyOptimiser
from swav_platform.training.optimisation.sharding import is_split, own, total_norm
from swav_platform.training.passes import Accumulate, Passes, Precision, Prepare

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row


@dataclass(frozen=True)
class Learner:
    """All that learns. scaler: of the loss under fp16, else switched off."""

    network: nn.Module
    method: Method
    optimiser: AnyOptimiser
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))
    averages: Averages | None = None


@dataclass(frozen=True)
class StepReport:
    """loss: mean over the step's images; extra: sums over ranks of what was given; metrics: only where asked for;
    collectives: how many there were of the method, of gradients, of normalisation."""

    loss: float
    extra: list[float]
    metrics: dict[str, float] = field(default_factory=dict)
    collectives: dict[str, int] = field(default_factory=dict)


def train_step(
    step: int,
    rows: Sequence[Row],
    learner: Learner,
    comm: Comm,
    prepare: Prepare,
    *,
    batch: int,
    lr: float,
    precision: Precision = "fp32",
    accumulate: Accumulate = "hold",
    together: bool = False,
    clip: float | None = None,
    extra: Sequence[float] = (),
    metrics: bool = False,
) -> StepReport:
    """Moves the weights by the step whose rows `rows` are this rank's share of. Where all are frozen, rows go forward only.

    The loss is the sum over images of weight x loss, divided by `batch` (images of the step on all ranks). Losses, gradients and
    statistics are functions of the step's rows: ranks may hold different numbers of them.
    together: all rows in one pass (batch norm over the step). clip: length to which the step's gradient is cut.
    extra: numbers to sum over ranks on the way, in float32: whole ones are exact up to 2^24. Raises UserError, before any weight
    moves, for a loss or a gradient that is no number; under fp16 such a gradient only lowers the scale of the loss, and no weight moves.
    """
    network, method, optimiser, scaler = learner.network, learner.method, learner.optimiser, learner.scaler
    network.train()
    optimiser.zero_grad()
    frozen = method.frozen(step)
    learns = any(p.requires_grad and name not in frozen for name, p in network.named_parameters())
    passes = Passes(network, prepare, precision, accumulate if learns else "hold", together, learns)
    calls: Counter[str] = Counter()
    with _counted(comm, "normalisation", calls):
        outputs = StepOutputs(step, passes.look(rows))
    with _counted(comm, "method", calls):
        targets = method.targets(outputs, comm)
    with _counted(comm, "normalisation", calls):
        loss = passes.backward(method, rows, outputs, targets, batch, scaler)

    for name, p in network.named_parameters():
        if name in frozen:
            p.grad = None
    moving = [p for p in network.parameters() if p.grad is not None]
    statistics = normalisation.collect(network).to(loss)
    counts = loss.new_tensor(list(extra))
    health = method.health_sums(outputs, targets).to(loss) if metrics else loss.new_zeros(0)
    with _counted(comm, "gradients", calls):
        sum_together([*(g for g in _gradients(moving) if not is_split(g)), loss, statistics, counts, health], comm)
    if moving:
        scaler.unscale_(optimiser)  # type: ignore[arg-type]
    value = loss.item()
    grad_norm = total_norm(_gradients(moving))
    check_finite(step, value, grad_norm.item(), lr, scaler)
    if clip is not None and moving:
        torch._foreach_mul_([own(g) for g in _gradients(moving)], (clip / (grad_norm + 1e-6)).clamp_max(1))

    found = {"train/grad_norm": grad_norm.item()} | method.health(health, value) if metrics else {}
    for group in optimiser.param_groups:
        group["lr"] = lr
    if moving:
        scaler.step(optimiser)  # type: ignore[arg-type]
        scaler.update()
    normalisation.commit(network, statistics)
    with _counted(comm, "method", calls):
        method.after_step(outputs, comm)
    if learner.averages is not None:
        learner.averages.update(network, frozen)
    return StepReport(value, counts.tolist(), found, dict(calls))


@contextmanager
def _counted(comm: Comm, kind: str, calls: Counter[str]) -> Iterator[None]:
    before = _collectives(comm)
    yield
    calls[kind] += _collectives(comm) - before


def _collectives(comm: Comm) -> int:
    return sum(getattr(comm, "calls", {}).values())


def _gradients(moving: Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in moving if p.grad is not None]
