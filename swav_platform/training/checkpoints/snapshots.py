"""Converts between a learner, spread over ranks, and the snapshot in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swav_platform.methods.comm import Comm
from swav_platform.methods.method import PositionOrderedState
from swav_platform.training.checkpoints.store import Snapshot
from swav_platform.training.learner import Learner
from swav_platform.training.optimisation.averages import split
from swav_platform.training.optimisation.optimisers import load_optimiser_tensors, optimiser_tensors
from swav_platform.training.optimisation.sharding import split_like, whole


def take(learner: Learner, steps: int, state: Mapping[str, Any], ledger: bytes, comm: Comm) -> Snapshot:
    """Snapshot of the learner after `steps` steps, whole on each rank. All ranks must call it."""
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
    """Restores a new learner from a snapshot, which any number of ranks may have taken."""
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
    """Entries of all ranks, ordered by row."""
    rows = comm.gather_in_order(state.rows)
    order = rows.argsort()
    tensors = {name: comm.gather_in_order(t)[order.to(t.device)] for name, t in state.tensors.items()}
    return PositionOrderedState(rows[order], tensors, state.shared)
