"""One training step: forward passes of this rank's rows, codes over all ranks, one sum of gradients, an optimiser step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from swav_platform.errors import UserError
from swav_platform.methods.comm import Comm
from swav_platform.methods.method import StepOutputs
from swav_platform.models import normalisation
from swav_platform.training.health.probe import watching
from swav_platform.training.health.vitals import Vitals
from swav_platform.training.learner import Learner
from swav_platform.training.optimisation.sharding import is_split, own, total_norm
from swav_platform.training.passes import Accumulate, Passes, Precision, Prepare
from swav_platform.training.reduction import GradientSum

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row


@dataclass(frozen=True)
class StepReport:
    """loss: mean over the step's images. extra: sums over ranks of `extra`. metrics: empty without `vitals`. collectives: number of
    collectives of the method, of gradients, of normalisation and of health."""

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
    vitals: Vitals | None = None,
) -> StepReport:
    """Updates the weights. rows: this rank's share of the step's rows. If all weights are frozen, rows pass forward only.

    The loss is the sum over images of weight x loss, divided by `batch` (images of the step on all ranks). Losses, gradients and
    statistics are functions of the step's rows, however these are divided among ranks.
    together: one pass for all rows (batch norm over the step). clip: largest norm of the step's gradient. extra: numbers to sum over
    ranks in float32; integers up to 2^24 are exact. vitals: makes the metrics of a step that is logged.

    Raises NotFinite before the update if the loss or the gradient is not finite. Under fp16 an infinite gradient only lowers the scale
    of the loss and skips the update.
    """
    network, method, optimiser, scaler = learner.network, learner.method, learner.optimiser, learner.scaler
    network.train()
    optimiser.zero_grad()
    frozen = method.frozen(step)
    learns = any(p.requires_grad and name not in frozen for name, p in network.named_parameters())
    passes = Passes(network, prepare, precision, accumulate if learns else "hold", together, learns)
    trained = [p for name, p in network.named_parameters() if p.requires_grad and name not in frozen and not is_split(p)]
    gradients = GradientSum(trained, comm)
    calls: Counter[str] = Counter()
    with _counted(comm, "normalisation", calls), watching(network, vitals is not None) as seen:
        outputs = StepOutputs(step, passes.look(rows))
    with _counted(comm, "method", calls):
        targets = method.targets(outputs, comm)
    with _counted(comm, "normalisation", calls):
        loss = passes.backward(method, rows, outputs, targets, batch, scaler, gradients.start)

    for name, p in network.named_parameters():
        if name in frozen:
            p.grad = None
    moving = [p for p in network.parameters() if p.grad is not None]
    statistics = normalisation.collect(network).to(loss)
    counts = loss.new_tensor(list(extra))
    with _counted(comm, "gradients", calls):
        gradients.finish([loss, statistics, counts])
    calls["gradients"] += gradients.sent
    calls["normalisation"] -= gradients.sent  # they began during the backward pass
    gathered = None
    if vitals is not None:
        with _counted(comm, "health", calls):
            gathered = vitals.gather(method, rows, outputs, targets, seen, comm)
    if moving:
        scaler.unscale_(optimiser)  # type: ignore[arg-type]
    grad_norm = total_norm(_gradients(moving))
    value, norm, *sums = torch.cat(
        [loss.reshape(1), grad_norm.reshape(1).to(loss), counts]
    ).tolist()  # the step's one wait for a GPU
    _check_finite(step, value, norm, lr, scaler)
    if clip is not None and moving:
        torch._foreach_mul_([own(g) for g in _gradients(moving)], (clip / (grad_norm + 1e-6)).clamp_max(1))

    before = None if gathered is None else [own(p).detach().clone() for p in moving]
    for group in optimiser.param_groups:
        group["lr"] = lr
    if moving:
        scaler.step(optimiser)  # type: ignore[arg-type]
        scaler.update()
    found: dict[str, float] = {}
    if vitals is not None and gathered is not None and before is not None:
        scale = {"train/loss_scale": scaler.get_scale()} if scaler.is_enabled() else {}
        found = {"train/grad_norm": norm} | scale | update_share(moving, before) | method.health(gathered.of_method, value)
        found |= vitals.measure(gathered) if comm.rank == 0 else {}
    normalisation.commit(network, statistics)
    with _counted(comm, "method", calls):
        method.after_step(outputs, comm)
    if learner.averages is not None:
        learner.averages.update(network, frozen)
    return StepReport(value, sums, found, dict(calls))


class NotFinite(UserError):
    """A loss or a gradient that is not finite. No weight has moved."""

    def __init__(self, step: int, loss: float, grad_norm: float, lr: float) -> None:
        self.step, self.loss, self.grad_norm = step, loss, grad_norm
        super().__init__(
            f"The loss of step {step} is {loss} and the norm of its gradient is {grad_norm} (learning rate {lr:.4g}), so the run stopped. "
            f"The last checkpoint is not affected. Lower train.optimiser.lr, lengthen train.optimiser.warmup_steps or set "
            f"train.precision=fp32, under another run.name."
        )


def _check_finite(step: int, loss: float, grad_norm: float, lr: float, scaler: GradScaler) -> None:
    """An enabled scaler tolerates an infinite gradient until its scale falls below 1."""
    overflow = scaler.is_enabled() and math.isfinite(loss) and scaler.get_scale() >= 1
    if not math.isfinite(loss + grad_norm) and not overflow:
        raise NotFinite(step, loss, grad_norm, lr)


def update_share(moving: Sequence[nn.Parameter], before: Sequence[Tensor]) -> dict[str, float]:
    """How far the step moved the weights, over their length; nothing where weights are split over ranks."""
    if any(is_split(p) for p in moving):
        return {}
    if not moving:
        return {"train/update_share": 0.0}
    moved = total_norm(torch._foreach_sub([p.detach() for p in moving], list(before)))
    return {"train/update_share": (moved / total_norm(before).clamp_min(1e-30)).item()}


@contextmanager
def _counted(comm: Comm, kind: str, calls: Counter[str]) -> Iterator[None]:
    before = _collectives(comm)
    yield
    calls[kind] += _collectives(comm) - before


def _collectives(comm: Comm) -> int:
    return sum(getattr(comm, "calls", {}).values())


def _gradients(moving: Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in moving if p.grad is not None]
