"""Converts between a learner, spread over ranks, and the snapshot in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from swav_platform.methods.comm import Comm
from swav_platform.methods.method import PositionOrderedState
from swav_platform.training.checkpoints.store import Snapshot
from swav_platform.training.collectives import broadcast_bytes
from swav_platform.training.learner import Learner
from swav_platform.training.optimisation.averages import split
from swav_platform.training.optimisation.optimisers import load_optimiser_tensors, optimiser_tensors
from swav_platform.training.optimisation.sharding import split_like, whole


def take(learner: Learner, steps: int, state: Mapping[str, Any], comm: Comm) -> Snapshot | None:
    """Snapshot of the learner after `steps` steps on rank 0, in host memory that later steps do not change; None on the other ranks.

    All ranks must call it.
    """
    gathered = gather_state(learner.method.state(), comm)
    method = {"rows": gathered.rows} | {f"tensors/{name}": t for name, t in gathered.tensors.items()}
    method |= {f"shared/{name}": t for name, t in gathered.shared.items()}
    first = comm.rank == 0
    optimiser = _whole(optimiser_tensors(learner.optimiser, learner.network), first)
    if learner.averages is not None:
        optimiser |= _whole(learner.averages.tensors(), first)
    model = _whole(learner.network.state_dict(), first)
    if not first:
        return None
    if learner.scaler.is_enabled():
        state = {**state, "loss_scale": learner.scaler.state_dict()}
    return Snapshot(steps, model, optimiser, _whole(method, first), state)


def _whole(tensors: Mapping[str, Tensor], first: bool) -> dict[str, Tensor]:
    """Unsplit copies in host memory; nothing on ranks other than the first, which still take part in the collectives."""
    found = {}
    for name, tensor in tensors.items():
        unsplit = whole(tensor)
        if first:
            found[name] = unsplit.detach().to("cpu", copy=True)
    return found


def broadcast(snapshot: Snapshot | None, comm: Comm) -> Snapshot:
    """The snapshot of rank 0 on all ranks."""
    if comm.size == 1:
        assert snapshot is not None
        return snapshot
    parts: list[Mapping[str, Tensor]] = [snapshot.model, snapshot.optimizer, snapshot.method] if snapshot else []
    shapes = [[(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in part.items()] for part in parts]
    steps, state, shapes = json.loads(
        broadcast_bytes(json.dumps([snapshot.steps, snapshot.state, shapes] if snapshot else []).encode(), comm)
    )
    received: list[dict[str, Tensor]] = []
    for number, names in enumerate(shapes):
        own = parts[number] if parts else {}
        received.append(
            {
                name: comm.broadcast(own[name].contiguous() if own else torch.empty(shape, dtype=getattr(torch, dtype)))
                for name, dtype, shape in names
            }
        )
    model, optimiser, method = received
    return Snapshot(steps, model, optimiser, method, state)


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
    """Entries of all ranks, ordered by row, on rank 0; without entries on the other ranks."""
    rows = comm.gather_to_first(state.rows)
    order = rows.argsort()
    tensors = {name: comm.gather_to_first(t)[order.to(t.device)] for name, t in state.tensors.items()}
    return PositionOrderedState(rows[order], tensors, state.shared)
