"""Between what learns, spread over ranks, and the one snapshot of it that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from swav_platform.config import Config
from swav_platform.methods.comm import Comm
from swav_platform.methods.method import PositionOrderedState, build_method
from swav_platform.models.encoders import build_encoder
from swav_platform.training.averages import Averages, split
from swav_platform.training.checkpoints import Snapshot
from swav_platform.training.optimisers import build_optimiser, load_optimiser_tensors, optimiser_tensors
from swav_platform.training.step import Learner
from swav_platform.training.warm_start import load_encoder


def build_learner(config: Config, device: torch.device) -> Learner:
    """Fresh, from `config.seed` alone (and the weights of `model.init`): equal on every rank without a broadcast."""
    method = build_method(config)
    encoder = build_encoder(config.model, config.seed)
    if config.model.init is not None:
        load_encoder(encoder, Path(config.model.init))
    network = method.modules(encoder)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.train.compile:
        compile_encoders(network)
    return Learner(
        network,
        method,
        build_optimiser(network.parameters(), config.train.optimiser),
        GradScaler(device.type, enabled=config.train.precision == "fp16"),
        None if config.train.ema is None else Averages(config.train.ema),
    )


def compile_encoders(network: nn.Module) -> None:
    """In place, so that names of weights stay. One graph a resolution: shapes do not change while a run goes on."""
    for module in network.modules():
        if hasattr(module, "feature_dim"):
            module.compile(dynamic=False)


def take(learner: Learner, steps: int, state: Mapping[str, Any], ledger: bytes, comm: Comm) -> Snapshot:
    """The learner after `steps` steps. All ranks call it; each gets the whole."""
    gathered = gather_state(learner.method.state(), comm)
    method = {"rows": gathered.rows} | {f"tensors/{name}": t for name, t in gathered.tensors.items()}
    method |= {f"shared/{name}": t for name, t in gathered.shared.items()}
    optimiser = optimiser_tensors(learner.optimiser, learner.network)
    if learner.averages is not None:
        optimiser |= learner.averages.tensors()
    if learner.scaler.is_enabled():
        state = {**state, "loss_scale": learner.scaler.state_dict()}
    return Snapshot(steps, learner.network.state_dict(), optimiser, method, ledger, state)


def restore(learner: Learner, snapshot: Snapshot, comm: Comm) -> None:
    """Brings a fresh learner to where `snapshot` was taken, by however many ranks."""
    learner.network.load_state_dict(dict(snapshot.model))
    averages, optimiser = split(snapshot.optimizer)
    load_optimiser_tensors(learner.optimiser, learner.network, optimiser)
    if learner.averages is not None:
        learner.averages.load(averages, learner.network)
    if learner.scaler.is_enabled():
        learner.scaler.load_state_dict(snapshot.state["loss_scale"])
    tensors, shared = (
        {name.removeprefix(prefix): t for name, t in snapshot.method.items() if name.startswith(prefix)}
        for prefix in ("tensors/", "shared/")
    )
    learner.method.load_state(PositionOrderedState(snapshot.method["rows"], tensors, shared), comm)


def gather_state(state: PositionOrderedState, comm: Comm) -> PositionOrderedState:
    """Every rank's entries, in the order of rows."""
    rows = comm.gather_in_order(state.rows)
    order = rows.argsort()
    tensors = {name: comm.gather_in_order(t)[order.to(t.device)] for name, t in state.tensors.items()}
    return PositionOrderedState(rows[order], tensors, state.shared)
