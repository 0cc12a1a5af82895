"""Repeats a step of a run, and finds the first layer and the first image whose values are not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from swav_platform.errors import UsageError, UserError
from swav_platform.methods.comm import LocalComm
from swav_platform.models import normalisation
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.metrics import read_metrics
from swav_platform.training.checkpoints import snapshots
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.course import Course
from swav_platform.training.device import here, preparer, resolved, set_torch
from swav_platform.training.health.remedies import remedied
from swav_platform.training.learner import build_learner
from swav_platform.training.passes import Passes, Prepare
from swav_platform.training.step import NotFinite

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row

log = logging.getLogger("swav")

Rows = Callable[[int, int], "Iterator[Row]"]


@dataclass(frozen=True)
class Fault:
    """The first values of a step that are not finite.

    layer: the first module, in the order of the forward pass, whose output they are in; "gradient of NAME" if all outputs are finite.
    cause: pixels, weight (of that layer), activations (an overflow inside of it) or gradient. images: how many of the row have such values.
    """

    layer: str
    cause: str
    row: int | None = None
    image: str | None = None  # key of the first image
    shard: str | None = None
    sample: int | None = None
    position: int | None = None
    view: int | None = None  # of the group of views that the layer saw
    images: int = 0


@dataclass(frozen=True)
class Replayed:
    """A repeated step. recorded: its loss in metrics.jsonl, if it is there. equal: whether both losses have the same bits."""

    step: int
    start: int  # steps of the checkpoint that it began from; 0 without one
    loss: float
    grad_norm: float | None
    recorded: float | None
    equal: bool | None
    fault: Fault | None


def replay(
    folder: RunFolder,
    step: int,
    *,
    device: torch.device | None = None,
    rows: Rows | None = None,
    prepare: Prepare | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Replayed:
    """Goes from the newest checkpoint before `step` through all steps after it. Writes nothing.

    The bits are those of the run if it had one worker, on the same machine and with the same versions; else equal up to rounding.
    rows, prepare: as for `train`; by default made from the run's index on this machine.
    Raises UsageError for a step that the run does not have, UserError if it can't be repeated.
    """
    info, comm = folder.info(), LocalComm()
    device = device or here()
    config = resolved(remedied(folder.config(), folder, comm, step), device)
    total = config.steps(int(info["samples"]))
    if not 0 <= step < total:
        raise UsageError(f"Run {folder.name} has the steps 0 to {total - 1}; {step} is none of them.")
    set_torch(config, device, config.fewest_workers)
    learner = build_learner(config, device)
    if config.model.normalisation == "step":
        normalisation.across(learner.network, comm)
    start = 0
    if (path := checkpoints.before(folder.checkpoints, step)) is not None:
        snapshot = checkpoints.load(path)
        snapshots.restore(learner, snapshot, comm)
        start = snapshot.steps
    course = Course(config, int(info["samples"]), learner, comm, prepare or preparer(config, device))
    stream = (rows or _rows(folder, info))(start * config.rows_per_step, (step + 1) * config.rows_per_step)
    for number in range(start, step):
        progress(number - start, step - start)
        try:
            course.make(number, _next(stream, config.rows_per_step))
        except NotFinite as error:
            raise UserError(
                f"Values are not finite in step {number} already, before step {step}: replay step {number}."
            ) from error
    return _look(course, step, start, _next(stream, config.rows_per_step), _recorded(folder, step))


def _rows(folder: RunFolder, info: dict[str, Any]) -> Rows:
    from swav_platform.rows.job import RowJob
    from swav_platform.training.local_rows import local_rows

    return local_rows(RowJob(folder.config(), info["index"], checkpoints.known_killers(folder)), LocalComm())


def _next(stream: Iterator[Row], count: int) -> list[Row]:
    return [next(stream) for _ in range(count)]


def _recorded(folder: RunFolder, step: int) -> float | None:
    line = next(iter(read_metrics(folder.path, step)), None)
    return float(line["loss"]) if line is not None and line["step"] == step else None


def _look(course: Course, step: int, start: int, own: Sequence[Row], recorded: float | None) -> Replayed:
    fault = forward_fault(course, own)
    try:
        loss, norm = course.make(step, own).loss, None
    except NotFinite as error:
        loss, norm = error.loss, error.grad_norm
        fault = fault or _weight_fault(course.learner.network) or _gradient_fault(course.learner.network)
    equal = None if recorded is None else np.float64(loss).tobytes() == np.float64(recorded).tobytes()
    return Replayed(step, start, loss, norm, recorded, equal, fault)


@torch.no_grad()
def forward_fault(course: Course, rows: Sequence[Row]) -> Fault | None:
    """Passes rows forward, one by one, and returns the first fault. Changes nothing of the learner."""
    network, config = course.learner.network, course.config
    network.train()
    passes = Passes(network, course.prepare, config.train.precision, "recompute", learns=False)
    for row in rows:
        found = list[Fault]()
        with normalisation.not_recording(network), _hooked(network, row, found):
            passes.look([row])
        if found:
            return found[0]
    return None


@contextmanager
def _hooked(network: nn.Module, row: Row, found: list[Fault]) -> Iterator[None]:
    """Collects faults of layers while the network runs, eagerly: hooks inside of a compiled encoder are not called."""
    size = len(row.weight)
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if (compiled := getattr(module, "_compiled_call_impl", None)) is not None:
                module._compiled_call_impl = None
                stack.callback(setattr, module, "_compiled_call_impl", compiled)
            if not any(module.children()):

                def look(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                    if not found and isinstance(output, Tensor) and not output.isfinite().all():
                        found.append(_fault(name, module, inputs, output, row, size))

                stack.callback(module.register_forward_hook(look).remove)
        yield


def _fault(name: str, module: nn.Module, inputs: Any, output: Tensor, row: Row, size: int) -> Fault:
    given = next((x for x in inputs if isinstance(x, Tensor)), None)
    if not all(p.isfinite().all() for p in module.parameters(recurse=False)):
        cause, seen = "weight", output
    elif given is not None and not given.isfinite().all():
        cause, seen = "pixels", given  # of the first layer: no layer before it had such an output
    else:
        cause, seen = "activations", output
    bad = ~seen.flatten(1).isfinite().all(1)  # view by view, of `size` images each
    by_view = bad.unflatten(0, (-1, size))
    slots = by_view.any(0)
    slot = int(slots.nonzero()[0])
    view = int(by_view[:, slot].nonzero()[0])
    return Fault(
        name,
        cause,
        int(row.row),
        row.key[slot],
        row.shard[slot],
        int(row.sample[slot]),
        int(row.position[slot]),
        view,
        int(slots.sum()),
    )


def _weight_fault(network: nn.Module) -> Fault | None:
    """A weight that no layer of the network applies by itself, such as the prototypes."""
    bad = next((name for name, p in network.named_parameters() if not p.isfinite().all()), None)
    return Fault(bad.rpartition(".")[0], "weight") if bad else None


def _gradient_fault(network: nn.Module) -> Fault | None:
    """The last weight, hence the first in the backward pass, whose gradient is not finite."""
    bad = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return Fault(f"gradient of {bad[-1]}", "gradient") if bad else None
