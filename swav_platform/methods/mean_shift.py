"""Mean shift: a view moves to the mean of its nearest neighbours (Koohpayegani et al. 2021, arXiv 2105.07269).

With one neighbour, which is the image itself, this is BYOL's objective (Grill et al. 2020, arXiv 2006.07733).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.methods import health
from swav_platform.methods.comm import Comm, in_position_order
from swav_platform.methods.method import Method, PositionOrderedState, RowOutputs, StepOutputs, Targets
from swav_platform.methods.network import MomentumNetwork, build_momentum_network


class Neighbours(NamedTuple):
    """Neighbours of the assignment views of one row, as the momentum network embeds them."""

    embeddings: Tensor  # [A, R, k, D], the image's own first
    counted: Tensor  # [A, R, k], 1; 0 past the end of a bank that holds fewer than k


class MeanShift(Method):
    """The views `assign_views` are targets, and every other view is a query for them.

    With a group of weakly augmented views first and a group of strongly augmented ones after it, this is the paper's
    weak/strong variant.
    """

    network: MomentumNetwork
    views: Mapping[str, ViewGroup]

    def __init__(self, config: Config) -> None:
        self.config, self.options, self.views = config, config.method, config.views
        self.rows_per_step = config.rows_per_step
        steps = max(1, config.method.bank_length // config.train.batch)
        self.bank = Bank(steps * config.rows_per_step)

    def modules(self, encoder: nn.Module) -> nn.Module:
        return self.attach(build_momentum_network(encoder, self.config))

    def attach(self, network: MomentumNetwork) -> MomentumNetwork:
        """Sets the network to train."""
        self.network = network
        return network

    @torch.no_grad()
    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        """The k nearest neighbours of each target in the bank, after the step's targets have entered it (section 3)."""
        own = {row.row: _packed(row) for row in outputs.rows}
        rows = range(outputs.step * self.rows_per_step, (outputs.step + 1) * self.rows_per_step)
        self.bank.write(rows, in_position_order(own, rows, comm))
        return {row.row: self.bank.nearest(_momentum(row), self.options.neighbours) for row in outputs.rows}

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        """Mean squared distance from the queries to the neighbours (eq. 1; Grill et al. 2020, eq. 2 for k = 1)."""
        near: Neighbours = targets[outputs.row]
        distance = 2 - 2 * torch.einsum("vrd,arkd->avrk", outputs.embeddings, near.embeddings)
        share = near.counted / near.counted.sum(-1, keepdim=True).clamp_min(1)
        to_targets = (distance * share[:, None]).sum(-1)  # [A, V, R]
        if len(to_targets) == 1:
            return to_targets.mean((0, 1))
        total = [d.sum(0) - d[view] for d, view in zip(to_targets, self.options.assign_views, strict=True)]
        return torch.stack(total).mean(0) / (to_targets.shape[1] - 1)

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
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
    """Targets of the newest `length` rows, identical on every rank. Row k is stored at k mod `length`."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.features = torch.zeros(0)  # [A, length, R, D], allocated by the first write
        self.weight = torch.zeros(0)  # [length, R]; 0 for entries not yet written

    def write(self, rows: range, packed: Tensor) -> None:
        """packed: [rows, R, A, D + 1], features followed by the image's weight."""
        features, weight = packed[..., :-1].permute(2, 0, 1, 3), packed[:, :, 0, -1]
        if not len(self.weight):
            self.features = features.new_zeros(features.shape[0], self.length, *features.shape[2:])
            self.weight = weight.new_zeros(self.length, weight.shape[1])
        at = torch.tensor([row % self.length for row in rows], device=features.device)
        self.features[:, at], self.weight[at] = features, weight

    def nearest(self, targets: Tensor, k: int) -> Neighbours:
        """The k nearest neighbours of each of targets [A, R, D] among the bank's features of the same view."""
        bank, present = self.features.flatten(1, 2), self.weight.flatten() > 0
        cosine = (targets @ bank.transpose(1, 2)).masked_fill(~present, -torch.inf)
        best, at = cosine.topk(min(k, len(present)), dim=-1)
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
    """[R, A, D + 1]: targets and weights of a row, for Bank.write."""
    targets = _momentum(row).transpose(0, 1)
    return torch.cat([targets, row.weight[:, None, None].expand(*targets.shape[:2], 1)], dim=-1)
