"""Mean shift: an image's view moves to the mean of its nearest neighbours (Koohpayegani et al. 2021, arXiv 2105.07269). With one
neighbour, which is the image itself, it is BYOL's objective (Grill et al. 2020, arXiv 2006.07733)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.methods import health
from swav_platform.methods.comm import Comm, in_position_order
from swav_platform.methods.method import PositionOrderedState, RowOutputs, StepOutputs, Targets
from swav_platform.methods.network import drawn_head
from swav_platform.models.heads import unit


class Neighbours(NamedTuple):
    """Of the assignment views of one row, by the momentum network."""

    embeddings: Tensor  # [A, R, k, D], the image's own first
    counted: Tensor  # [A, R, k], 1 or, where the bank holds fewer than k, 0


class MomentumNetwork(nn.Module):
    """An online network with a predictor on it, and a slow copy of the rest that is not trained."""

    def __init__(self, encoder: nn.Module, projection_head: nn.Module, predictor: nn.Module, targets: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.projection_head, self.predictor = encoder, projection_head, predictor
        self.momentum = copy.deepcopy(nn.Sequential(encoder, projection_head)).requires_grad_(False)
        self.targets = list(targets)

    def forward(self, views: Sequence[Tensor], positions: int) -> tuple[Tensor, Tensor, Tensor]:
        """views: per resolution [V_g * R, 3, H_g, W_g], view by view; those at `targets` go through the momentum network.

        Returns queries [V, R, D], scores [V, R, 0] and targets [A, R, D]. A view that is the only target is no query.
        """
        first = views[0].unflatten(0, (-1, positions))
        with torch.no_grad():
            targets = unit(self.momentum(first[self.targets].flatten(0, 1))).unflatten(0, (-1, positions))
        if len(self.targets) == 1:
            kept = [v for v in range(len(first)) if v not in self.targets]
            views = [first[kept].flatten(0, 1), *views[1:]] if kept else views[1:]
        features = torch.cat([self.encoder(group) for group in views])
        queries = unit(self.predictor(self.projection_head(features))).unflatten(0, (-1, positions))
        return queries, queries.new_zeros(*queries.shape[:2], 0), targets

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """target <- momentum target + (1 - momentum) online: parameters only, running statistics move by themselves."""
        online: list[Tensor] = [*self.encoder.parameters(), *self.projection_head.parameters()]
        slow: list[Tensor] = list(self.momentum.parameters())
        torch._foreach_lerp_(slow, online, 1 - momentum)


class MeanShift:
    """The views `assign_views` are targets; every other view is a query of them. With a group of weakly changed views first
    and one of strongly changed ones after it, this is the paper's weak/strong variant."""

    network: MomentumNetwork
    views: Mapping[str, ViewGroup]

    def __init__(self, config: Config) -> None:
        self.config, self.options, self.views = config, config.method, config.views
        self.rows_per_step = config.rows_per_step
        steps = max(1, config.method.bank_length // config.train.batch)
        self.bank = Bank(steps * config.rows_per_step)

    def modules(self, encoder: nn.Module) -> nn.Module:
        head = drawn_head(int(encoder.feature_dim), self.config, "heads")  # type: ignore[arg-type]
        predictor = drawn_head(self.config.model.projection_dim, self.config, "predictor")
        return self.attach(MomentumNetwork(encoder, head, predictor, self.options.assign_views))

    def attach(self, network: MomentumNetwork) -> MomentumNetwork:
        """Works on `network` from now on."""
        self.network = network
        return network

    def frozen(self, step: int) -> frozenset[str]:
        return frozenset()

    def start_epoch(self, epoch: int, comm: Comm) -> None:
        pass

    @torch.no_grad()
    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        """The k nearest neighbours of each target in the bank, into which the step's targets go first (section 3)."""
        own = {row.row: _packed(row) for row in outputs.rows}
        rows = range(outputs.step * self.rows_per_step, (outputs.step + 1) * self.rows_per_step)
        self.bank.write(rows, in_position_order(own, rows, comm))
        return {row.row: self.bank.nearest(_momentum(row), self.options.neighbours) for row in outputs.rows}

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        """Mean squared distance of the queries to the neighbours (eq. 1; Grill et al. 2020, eq. 2 for k = 1)."""
        near: Neighbours = targets[outputs.row]
        distance = 2 - 2 * torch.einsum("vrd,arkd->avrk", outputs.embeddings, near.embeddings)
        share = near.counted / near.counted.sum(-1, keepdim=True).clamp_min(1)
        to_targets = (distance * share[:, None]).sum(-1)  # [A, V, R]
        if len(to_targets) == 1:
            return to_targets.mean((0, 1))
        total = [d.sum(0) - d[view] for d, view in zip(to_targets, self.options.assign_views, strict=True)]
        return torch.stack(total).mean(0) / (to_targets.shape[1] - 1)

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
        """Brings the momentum network to where the next step's targets come from."""
        self.network.follow(self.options.momentum)

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        return health.spread_sums(torch.cat([_momentum(row).flatten(0, 1) for row in outputs.rows]))

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        return health.spread(sums)

    def state(self) -> PositionOrderedState:
        return PositionOrderedState(torch.zeros(0, dtype=torch.int64), {}, self.bank.state())

    def load_state(self, state: PositionOrderedState, comm: Comm) -> None:
        device = next(self.network.parameters()).device
        self.bank.load({name: t.to(device) for name, t in state.shared.items()})


class Bank:
    """The newest `length` rows of targets, on every rank; row k lies at k mod `length`."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.features = torch.zeros(0)  # [A, length, R, D]
        self.weight = torch.zeros(0)  # [length, R]; 0 where nothing lies yet

    def write(self, rows: range, packed: Tensor) -> None:
        """packed: [rows, R, A, D + 1], features and then the weight of the image."""
        features, weight = packed[..., :-1].permute(2, 0, 1, 3), packed[:, :, 0, -1]
        if not len(self.weight):
            self.features = features.new_zeros(features.shape[0], self.length, *features.shape[2:])
            self.weight = weight.new_zeros(self.length, weight.shape[1])
        at = torch.tensor([row % self.length for row in rows], device=features.device)
        self.features[:, at], self.weight[at] = features, weight

    def nearest(self, targets: Tensor, k: int) -> Neighbours:
        """targets [A, R, D]: each among the bank's features of its own view."""
        bank, there = self.features.flatten(1, 2), self.weight.flatten() > 0
        cosine = (targets @ bank.transpose(1, 2)).masked_fill(~there, -torch.inf)
        best, at = cosine.topk(min(k, len(there)), dim=-1)
        picked = torch.stack([view[places] for view, places in zip(bank, at, strict=True)])
        return Neighbours(picked, best.isfinite().to(targets.dtype))

    def state(self) -> dict[str, Tensor]:
        return {"features": self.features, "weight": self.weight}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.features, self.weight = state["features"], state["weight"]


def _momentum(row: RowOutputs) -> Tensor:
    assert row.momentum is not None  # the network is a MomentumNetwork
    return row.momentum


def _packed(row: RowOutputs) -> Tensor:
    """[R, A, D + 1]"""
    targets = _momentum(row).transpose(0, 1)
    return torch.cat([targets, row.weight[:, None, None].expand(*targets.shape[:2], 1)], dim=-1)
