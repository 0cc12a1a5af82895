"""Between what learns, spread over ranks, and the one snapshot of it that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from swav_platform.config import Config
from swav_platform.methods.comm import Comm
from swav_platform.methods.method import PositionOrderedState, build_method
from swav_platform.models.encoders import build_encoder
from swav_platform.training.checkpoints import Snapshot
from swav_platform.training.optimisers import build_optimiser, load_optimiser_tensors, optimiser_tensors
from swav_platform.training.step import Learner


def build_learner(config: Config, device: torch.device) -> Learner:
    """Fresh, from `config.seed` alone: equal on every rank without a broadcast."""
    method = build_method(config)
    network = method.modules(build_encoder(config.model, config.seed))
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Learner(network, method, build_optimiser(network.parameters(), config.train.optimiser))


def take(learner: Learner, steps: int, state: Mapping[str, Any], ledger: bytes, comm: Comm) -> Snapshot:
    """The learner after `steps` steps. All ranks call it; each gets the whole."""
    gathered = gather_state(learner.method.state(), comm)
    method = {"rows": gathered.rows} | {f"tensors/{name}": t for name, t in gathered.tensors.items()}
    method |= {f"shared/{name}": t for name, t in gathered.shared.items()}
    optimiser = optimiser_tensors(learner.optimiser, learner.network)
    return Snapshot(steps, learner.network.state_dict(), optimiser, method, ledger, state)


def restore(learner: Learner, snapshot: Snapshot, comm: Comm) -> None:
    """Brings a fresh learner to where `snapshot` was taken, by however many ranks."""
    learner.network.load_state_dict(dict(snapshot.model))
    load_optimiser_tensors(learner.optimiser, learner.network, snapshot.optimizer)
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
