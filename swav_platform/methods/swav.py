"""SwAV: views of an image predict each other's cluster assignments (Caron et al. 2020, arXiv 2006.09882)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.methods import health
from swav_platform.methods.comm import Comm, ExtraSum
from swav_platform.methods.method import Method, PositionOrderedState, RowOutputs, StepOutputs, Targets
from swav_platform.methods.network import MultiCropNetwork, build_prototype_network, frozen_prototypes, unit_prototypes
from swav_platform.methods.queue import Queue, drift_of
from swav_platform.methods.sinkhorn import power_law, sinkhorn


class Swav(Method):
    """Codes come from Sinkhorn-Knopp over the step; targets are codes [A, R, K] of the assignment views."""

    network: MultiCropNetwork
    views: Mapping[str, ViewGroup]

    def __init__(self, config: Config) -> None:
        self.config, self.options, self.views = config, config.method, config.views
        self.assign, self.heads = config.method.assign_views, config.method.heads
        self.prior = power_law(self.heads, self.options.prior_exponent) if self.options.prior == "power_law" else None
        self.queue = Queue(
            length=self.options.queue_length,
            start=self.options.queue_start,
            batch=config.train.batch,
            row_size=config.data.row_size,
            views=len(self.assign),
            dim=config.model.projection_dim,
            most_drift=self.options.queue_drift,
        )

    def modules(self, encoder: nn.Module) -> nn.Module:
        return self.attach(build_prototype_network(encoder, self.config))

    def attach(self, network: MultiCropNetwork) -> MultiCropNetwork:
        """Sets the network to train and scales its prototypes to unit length."""
        self.network = network
        unit_prototypes(network)
        return network

    def frozen(self, step: int) -> frozenset[str]:
        return frozen_prototypes(step, self.options)

    @torch.no_grad()
    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        """Codes of the assignment views (section 3.1, eq. 3-5) over the step's samples and, when in use, the queue's."""
        scores_abk = torch.cat([row.scores[list(self.assign)] for row in outputs.rows], dim=1)
        weight_b = torch.cat([row.weight for row in outputs.rows])
        with_drift: ExtraSum | None = None
        if self.queue.full(outputs.step) and self.options.queue_drift is not None:
            features_abd = torch.cat([row.embeddings[list(self.assign)] for row in outputs.rows], dim=1)
            comm = with_drift = ExtraSum(comm, self.queue.drift_sums(features_abd, weight_b))
        if self.queue.used(outputs.step):
            features_aqd, weight_q = self.queue.contents()
            scores_abk = torch.cat([F.linear(features_aqd, self.network.prototypes.weight), scores_abk], dim=1)
            weight_b = torch.cat([weight_q, weight_b])
        codes_abk = sinkhorn(
            scores_abk,
            epsilon=self.options.epsilon,
            iterations=self.options.iterations,
            comm=comm,
            heads=self.heads,
            prior=None if self.prior is None else self.prior.to(scores_abk.device),
            weight=weight_b,
        )
        if with_drift is not None:
            self.queue.note_drift(with_drift.extra)
        sizes = [len(row.weight) for row in outputs.rows]
        own = codes_abk[:, -sum(sizes) :]  # without the queue's
        if self.options.hard_codes:
            own = hard(own, self.heads)
        return {row.row: codes for row, codes in zip(outputs.rows, own.split(sizes, dim=1), strict=True)}

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        """Mean over heads of the swapped prediction loss. Each head predicts its own codes."""
        scores, codes = (x.split(self.heads, dim=-1) for x in (outputs.scores, targets[outputs.row]))
        each = [swapped_loss(s, q, self.assign, self.options.temperature) for s, q in zip(scores, codes, strict=True)]
        return torch.stack(each).mean(0)

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
        self.queue.fill(outputs.step, outputs.rows, self.assign)
        unit_prototypes(self.network)

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        codes = torch.cat([targets[row.row].flatten(0, 1) for row in outputs.rows])
        sums = health.prototype_sums(outputs, self.assign, self.heads, codes)
        if not self.queue.full(outputs.step):
            return sums
        features_abd = torch.cat([row.embeddings[list(self.assign)].detach() for row in outputs.rows], dim=1)
        drift = self.queue.drift_sums(features_abd, torch.cat([row.weight for row in outputs.rows]))
        return torch.cat([sums, drift.flatten()])

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        dim = self.config.model.projection_dim
        size = health.prototype_numbers(self.heads, dim)
        sums, drift = sums[:size], sums[size:]
        found = health.of_prototypes(sums, loss, self.heads)
        return found | ({"health/queue_drift": drift_of(drift.view(2, len(self.assign), dim + 1))} if len(drift) else {})

    def state(self) -> PositionOrderedState:
        return self.queue.state()

    def load_state(self, state: PositionOrderedState, comm: Comm) -> None:
        self.queue.load(state, comm, self.network.prototypes.weight.device)


def hard(codes: Tensor, heads: Sequence[int]) -> Tensor:
    """Codes [..., K] with each head's mass on its largest entry (section 3.1, the discrete codes)."""
    parts = [F.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype) for q in codes.split(list(heads), -1)]
    return torch.cat(parts, -1)


def swapped_loss(scores: Tensor, codes: Tensor, assign: Sequence[int], temperature: float) -> Tensor:
    """Swapped prediction (eq. 1, 2 and 6): the codes of view i are predicted from the scores of every other view.

    scores: [V, R, K], cosines. codes: [A, R, K], of the views `assign`.
    Returns [R]: the cross-entropy, averaged over the other views and then over the assignment views.
    """
    log_p_vrk = F.log_softmax(scores / temperature, dim=-1)
    all_views = log_p_vrk.sum(0)
    per_view = [-(q * (all_views - log_p_vrk[i])).sum(-1) / (len(scores) - 1) for q, i in zip(codes, assign, strict=True)]
    return torch.stack(per_view).mean(0)
