"""Between what learns, spread over ranks, and the one snapshot of it that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._functorch import config as functorch
from torch.amp.grad_scaler import GradScaler

from swav_platform.config import Config
from swav_platform.errors import UserError
from swav_platform.methods.build import build_method
from swav_platform.methods.comm import Comm
from swav_platform.methods.method import PositionOrderedState
from swav_platform.models.encoders import build_encoder
from swav_platform.training.checkpoints.store import Snapshot
from swav_platform.training.checkpoints.warm_start import load_encoder
from swav_platform.training.optimisation.averages import Averages, split
from swav_platform.training.optimisation.optimisers import build_optimiser, load_optimiser_tensors, optimiser_tensors
from swav_platform.training.optimisation.sharding import shard, split_like, whole
from swav_platform.training.step import Learner

ACTIVATIONS_KEPT = 0.75  # at most, of those that a compiled encoder would keep


def build_learner(config: Config, device: torch.device, ranks: int = 1) -> Learner:
    """Fresh, from `config.seed` alone (and the weights of `model.init`): equal on every rank without a broadcast.

    With `train.shard` each of `ranks` keeps its part of it. Raises UserError if they can't have the same number of rows.
    """
    method = build_method(config)
    encoder = build_encoder(config.model, config.seed)
    if config.model.init is not None:
        load_encoder(encoder, Path(config.model.init))
    network = method.modules(encoder)
    if config.train.shard == "fsdp2" and ranks > 1:
        check_even(config, ranks)
        shard(network.to(device), device, ranks)  # in torch's own layout: no other can be split
    else:
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


def check_even(config: Config, ranks: int) -> None:
    if config.rows_per_step % ranks:
        raise UserError(
            f"train.shard=fsdp2 splits weights over workers that make the same passes, but {config.rows_per_step} rows a step can't be "
            f"shared out evenly over {ranks} workers. Take a number of workers that divides them, or train.shard=none."
        )


def compile_encoders(network: nn.Module) -> None:
    """In place, so that names of weights stay. One graph a resolution, two where steps go forward only: shapes do not change while a
    run goes on.

    Of what would be kept for the way back (of a batch norm and the ReLU after it both outputs) a part is made again, the cheapest
    first. The share is a setting of the whole process.
    """
    functorch.activation_memory_budget = ACTIVATIONS_KEPT
    for module in network.modules():
        if hasattr(module, "feature_dim"):
            module.compile(dynamic=False)


def take(learner: Learner, steps: int, state: Mapping[str, Any], ledger: bytes, comm: Comm) -> Snapshot:
    """The learner after `steps` steps. All ranks call it; each gets the whole."""
    gathered = gather_state(learner.method.state(), comm)
    method = {"rows": gathered.rows} | {f"tensors/{name}": t for name, t in gathered.tensors.items()}
    method |= {f"shared/{name}": t for name, t in gathered.shared.items()}
    optimiser = {name: whole(t) for name, t in optimiser_tensors(learner.optimiser, learner.network).items()}
    if learner.averages is not None:
        optimiser |= learner.averages.tensors()
    if learner.scaler.is_enabled():
        state = {**state, "loss_scale": learner.scaler.state_dict()}
    model = {name: whole(t) for name, t in learner.network.state_dict().items()}
    return Snapshot(steps, model, optimiser, method, ledger, state)


def restore(learner: Learner, snapshot: Snapshot, comm: Comm) -> None:
    """Brings a fresh learner to where `snapshot` was taken, by however many ranks."""
    like = learner.network.state_dict()
    learner.network.load_state_dict({name: split_like(like.get(name, t), t) for name, t in snapshot.model.items()})
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
