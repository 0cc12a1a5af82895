"""SwAV: views of an image predict each other's cluster assignments (Caron et al. 2020, arXiv 2006.09882)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.methods.comm import Comm
from swav_platform.methods.health import spread, spread_sums
from swav_platform.methods.method import PositionOrderedState, RowOutputs, StepOutputs, Targets
from swav_platform.methods.network import MultiCropNetwork
from swav_platform.methods.queue import Queue
from swav_platform.methods.sinkhorn import sinkhorn
from swav_platform.models import heads
from swav_platform.models.resnet import initialise


class Swav:
    """The objective of `config.method`; `modules` (or `attach`) comes first."""

    network: MultiCropNetwork
    views: Mapping[str, ViewGroup]

    def __init__(self, config: Config) -> None:
        self.config, self.options, self.views = config, config.method, config.views
        self.assign = config.method.assign_views
        self.queue = Queue(
            length=self.options.queue_length,
            start=self.options.queue_start,
            batch=config.train.batch,
            row_size=config.data.row_size,
            views=len(self.assign),
            dim=config.model.projection_dim,
        )

    def modules(self, encoder: nn.Module) -> nn.Module:
        model, width = self.config.model, int(encoder.feature_dim)  # type: ignore[arg-type]
        with torch.device("meta"):
            top = nn.ModuleList(
                [
                    heads.projection_head(width, model.projection_hidden, model.projection_dim),
                    heads.prototypes(model.projection_dim, self.options.prototypes),
                ]
            )
        top.to_empty(device="cpu")
        initialise(top, self.config.seed, "heads")
        return self.attach(MultiCropNetwork(encoder, top[0], top[1]))  # type: ignore[arg-type]

    def attach(self, network: MultiCropNetwork) -> MultiCropNetwork:
        """Works on `network` from now on; its prototypes are brought to unit length."""
        self.network = network
        self._unit_prototypes()
        return network

    def frozen(self, step: int) -> frozenset[str]:
        return frozenset({"prototypes.weight"} if step < self.options.freeze_prototypes else ())

    @torch.no_grad()
    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        """Codes of the assignment views (section 3.1, eq. 3-5), shared out over the step and, once it is full, the queue."""
        scores_abk = torch.cat([row.scores[list(self.assign)] for row in outputs.rows], dim=1)
        weight_b = torch.cat([row.weight for row in outputs.rows])
        if self.queue.used(outputs.step):
            features_aqd, weight_q = self.queue.contents()
            scores_abk = torch.cat([F.linear(features_aqd, self.network.prototypes.weight), scores_abk], dim=1)
            weight_b = torch.cat([weight_q, weight_b])
        codes_abk = sinkhorn(
            scores_abk, epsilon=self.options.epsilon, iterations=self.options.iterations, comm=comm, weight=weight_b
        )
        sizes = [len(row.weight) for row in outputs.rows]
        own = codes_abk[:, -sum(sizes) :].split(sizes, dim=1)
        return {row.row: codes for row, codes in zip(outputs.rows, own, strict=True)}

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        return swapped_loss(outputs.scores, targets[outputs.row], self.assign, self.options.temperature)

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
        self.queue.fill(outputs.step, outputs.rows, self.assign)
        self._unit_prototypes()

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        views = list(self.assign)
        embeddings = torch.cat([row.embeddings[views].detach().flatten(0, 1) for row in outputs.rows])
        scores = torch.cat([row.scores[views].detach().flatten(0, 1) for row in outputs.rows])
        return spread_sums(embeddings, scores, torch.cat([targets[row.row].flatten(0, 1) for row in outputs.rows]))

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        found = spread(sums, *self.network.prototypes.weight.shape)
        return {"health/loss_minus_ln_k": loss - math.log(self.options.prototypes)} | found

    def state(self) -> PositionOrderedState:
        return self.queue.state()

    def load_state(self, state: PositionOrderedState, comm: Comm) -> None:
        self.queue.load(state, comm, self.network.prototypes.weight.device)

    @torch.no_grad()
    def _unit_prototypes(self) -> None:
        weight = self.network.prototypes.weight
        weight.copy_(F.normalize(weight, dim=1))


def swapped_loss(scores: Tensor, codes: Tensor, assign: Sequence[int], temperature: float) -> Tensor:
    """Swapped prediction (eq. 1, 2 and 6): the codes of view i from the scores of every other view.

    scores [V, R, K] cosines, codes [A, R, K] of the views `assign`; returns [R]: cross-entropy, mean over the other views,
    then over the assignment views.
    """
    log_p_vrk = F.log_softmax(scores / temperature, dim=-1)
    all_views = log_p_vrk.sum(0)
    per_view = [-(q * (all_views - log_p_vrk[i])).sum(-1) / (len(scores) - 1) for q, i in zip(codes, assign, strict=True)]
    return torch.stack(per_view).mean(0)
