"""Memory and traffic of a step, from a step on fake tensors: shapes and dtypes without data or computation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swav_platform.config import Config
from swav_platform.methods.build import build_method
from swav_platform.methods.method import StepOutputs
from swav_platform.models.encoders import build_encoder, check_name
from swav_platform.models.normalisation import RowBatchNorm
from swav_platform.training.device import here, resolved
from swav_platform.training.learner import ACTIVATIONS_KEPT
from swav_platform.training.optimisation import sharding
from swav_platform.training.passes import Passes

_STATES = {"lars": 1, "sgd": 1, "adamw": 2}  # optimiser state per weight, in numbers


@dataclass(frozen=True)
class Memory:
    """Bytes on the worker with the most rows.

    activations: what autograd graphs keep; for compiled encoders the upper limit. Not counted: workspaces of kernels, activations
    that checkpointing recomputes, and the state of methods (queue, bank, memories).
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    total: int


@dataclass(frozen=True)
class Communication:
    """What each worker sends to collectives in a step. None for a method whose traffic depends on the data."""

    gradient_bytes: int
    method_bytes: int | None
    method_collectives: int | None
    normalisation_bytes: int
    normalisation_collectives: int


class _Listener:
    """A `Comm` that counts bytes and calls without sending anything."""

    def __init__(self, size: int) -> None:
        self.rank, self.size, self.calls, self.bytes = 0, size, Counter[str](), 0

    def sum(self, x: Tensor) -> Tensor:
        return self._sent("sum", x)

    def max(self, x: Tensor) -> Tensor:
        return self._sent("max", x)

    def gather_in_order(self, x: Tensor) -> Tensor:
        self._sent("gather", x)
        return torch.cat([x] * self.size)

    def _sent(self, kind: str, x: Tensor) -> Tensor:
        self.calls[kind] += 1
        self.bytes += x.numel() * x.element_size()
        return x


@dataclass(frozen=True)
class _Blank:
    """A row without pixels."""

    row: int
    weight: np.ndarray
    sample: list[int]


def footprint(config: Config) -> tuple[Memory, Communication]:
    """Memory and traffic of a step. Raises UsageError for an unknown encoder or method."""
    check_name(config.model)
    config = resolved(config, here())
    own, size = -(-config.rows_per_step // config.fewest_workers), config.data.row_size
    method = build_method(config)
    network = method.modules(build_encoder(config.model)).train()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _empty(network, mode)
        views = [torch.empty(g.count * size, 3, g.size, g.size) for g in config.views.values()]
        rows: list[Any] = [_Blank(k, np.ones(size, np.float32), [0] * size) for k in range(own)]
        passes = Passes(network, lambda row: views, config.train.precision, together=config.model.normalisation == "step")
        kept = _kept(network, passes, rows[: own if passes.together else 1])
        sent = _sent(config, method, passes, rows)
    held = 1 if config.train.accumulate == "recompute" or passes.together else own
    share = ACTIVATIONS_KEPT if config.train.compile else 1
    return _memory(config, network, int(kept * held * share)), _communication(config, network, sent)


def _memory(config: Config, network: nn.Module, activations: int) -> Memory:
    moving = 4 * sum(_held(config, name, p) for name, p in network.named_parameters() if p.requires_grad)
    copies = 1 if config.train.ema is None else 2
    parameters = dict(network.named_parameters())
    weights = copies * 4 * sum(_held(config, n, t) if n in parameters else t.numel() for n, t in network.state_dict().items())
    optimiser = moving * _STATES[config.train.optimiser.name]
    return Memory(weights, moving, optimiser, activations, weights + moving + optimiser + activations)


def _communication(config: Config, network: nn.Module, sent: _Listener | None) -> Communication:
    many = config.most_workers > 1
    over_step = many and config.model.normalisation == "step"
    layers = [m.channels for m in network.modules() if isinstance(m, RowBatchNorm)] if over_step else []
    passes = len(config.views)
    return Communication(
        gradient_bytes=4 * sum(_given(config, name, p) for name, p in network.named_parameters()) if many else 0,
        method_bytes=None if sent is None else sent.bytes,
        method_collectives=None if sent is None else sum(sent.calls.values()),
        normalisation_bytes=passes * sum(8 * (2 * c + 1) + 4 * 2 * c for c in layers),
        normalisation_collectives=passes * 2 * len(layers),
    )


def _held(config: Config, name: str, p: Tensor) -> int:
    """Elements of `p` on a worker."""
    return -(-p.numel() // config.fewest_workers) if _is_split(config, name) else p.numel()


def _given(config: Config, name: str, p: Tensor) -> int:
    """Elements that a worker sends for `p`: its gradient, and its shard each time the other workers gather a split parameter."""
    if not _is_split(config, name):
        return p.numel() * p.requires_grad
    rows = 1 if config.model.normalisation == "step" else config.rows_per_step // config.fewest_workers
    gathered = 1 + p.requires_grad + (config.train.accumulate == "recompute")
    return rows * len(config.views) * (gathered * _held(config, name, p) + p.numel() * p.requires_grad)


def _is_split(config: Config, name: str) -> bool:
    return config.train.shard == "fsdp2" and config.fewest_workers > 1 and not name.startswith(sharding.WHOLE)


def _empty(network: nn.Module, mode: FakeTensorMode) -> None:
    """Replaces weights and buffers by fake tensors."""
    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(p.data), p.requires_grad)
        for name, b in module._buffers.items():
            module._buffers[name] = None if b is None else mode.from_tensor(b)


def _kept(network: nn.Module, passes: Passes, rows: list[Any]) -> int:
    """Bytes that the graphs of `rows` keep for the backward pass, without weights."""
    weights = {t.untyped_storage()._cdata for t in network.state_dict(keep_vars=True).values()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(t: Tensor) -> Tensor:
        storages[t.untyped_storage()._cdata] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        passes.look(rows)
    return sum(storage.nbytes() for key, storage in storages.items() if key not in weights)


def _sent(config: Config, method: Any, passes: Passes, rows: list[Any]) -> _Listener | None:
    listener = _Listener(config.most_workers)
    if listener.size == 1:
        return listener
    try:
        with torch.no_grad():
            outputs = StepOutputs(0, passes.look(rows))
            method.targets(outputs, listener)
            method.after_step(outputs, listener)
    except Exception:  # the method's targets depend on values, which fake tensors lack
        return None
    return listener
