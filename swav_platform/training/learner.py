"""The network, method and optimiser of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch._functorch import config as functorch
from torch.amp.grad_scaler import GradScaler

from swav_platform.config import Config
from swav_platform.errors import UserError
from swav_platform.methods.build import build_method
from swav_platform.methods.method import Method
from swav_platform.models.encoders import build_encoder
from swav_platform.training.checkpoints.warm_start import load_encoder, load_heads
from swav_platform.training.optimisation.averages import Averages
from swav_platform.training.optimisation.optimisers import AnyOptimiser, build_optimiser
from swav_platform.training.optimisation.sharding import shard

ACTIVATIONS_KEPT = 0.75  # largest share of its activations that a compiled encoder keeps


@dataclass(frozen=True)
class Learner:
    """Everything that a step changes. scaler: scales the loss under fp16, and is disabled otherwise."""

    network: nn.Module
    method: Method
    optimiser: AnyOptimiser
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))
    averages: Averages | None = None


def build_learner(config: Config, device: torch.device, ranks: int = 1) -> Learner:
    """A new learner, drawn from `config.seed` (or loaded from `model.init`), hence equal on every rank without a broadcast.

    With `train.shard` each of `ranks` ranks keeps a part of it. Raises UserError if they can't have the same number of rows.
    """
    method = build_method(config)
    encoder = build_encoder(config.model, config.seed)
    if config.model.init is not None:
        load_encoder(encoder, Path(config.model.init))
    network = method.modules(encoder)
    if config.model.init_heads:
        load_heads(network, config.model.init)
    if config.train.shard == "fsdp2" and ranks > 1:
        _check_even(config, ranks)
        shard(network.to(device), device, ranks)  # in the default memory format, the only one that can be split
    else:
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.train.compile:
        _compile_encoders(network)
    return Learner(
        network,
        method,
        build_optimiser(network.parameters(), config.train.optimiser),
        GradScaler(device.type, enabled=config.train.precision == "fp16"),
        None if config.train.ema is None else Averages(config.train.ema),
    )


def _check_even(config: Config, ranks: int) -> None:
    if config.rows_per_step % ranks:
        raise UserError(
            f"train.shard=fsdp2 needs the same number of rows on each worker, but {ranks} workers do not divide the {config.rows_per_step} rows "
            f"of a step. Use a number of workers that does, or set train.shard=none."
        )


def _compile_encoders(network: nn.Module) -> None:
    """Compiles encoders in place, which keeps the names of weights. One graph per resolution, since shapes do not change during a
    run; two where some steps pass forward only.

    The backward pass recomputes some activations, the cheapest first, instead of keeping them. The share is a setting of the process.
    """
    functorch.activation_memory_budget = ACTIVATIONS_KEPT
    for module in network.modules():
        if hasattr(module, "feature_dim"):
            module.compile(dynamic=False)
