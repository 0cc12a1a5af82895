"""SimCLR: views of one image are told from those of all other images of the step (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.methods import health
from swav_platform.methods.comm import Comm, in_position_order
from swav_platform.methods.method import PositionOrderedState, RowOutputs, StepOutputs, Targets
from swav_platform.methods.network import ProjectionNetwork, build_projection_network


class Step(NamedTuple):
    """All views of the step's images, without gradient, view after view of image after image: n = S * R * V."""

    embeddings: Tensor  # [n, D]
    log_weight: Tensor  # [n], of the image
    log_pull: Tensor  # [n]: how hard an anchor pushes each of its negatives away, see `nt_xent`
    first: int  # where the row's own begin


class SimClr:
    """Every view is an anchor, every other view of its image a positive, all views of other images negatives."""

    network: ProjectionNetwork
    views: Mapping[str, ViewGroup]

    def __init__(self, config: Config) -> None:
        self.config, self.options, self.views = config, config.method, config.views
        self.rows_per_step = config.rows_per_step

    def modules(self, encoder: nn.Module) -> nn.Module:
        return self.attach(build_projection_network(encoder, self.config))

    def attach(self, network: ProjectionNetwork) -> ProjectionNetwork:
        """Works on `network` from now on."""
        self.network = network
        return network

    def frozen(self, step: int) -> frozenset[str]:
        return frozenset()

    def start_epoch(self, epoch: int, comm: Comm) -> None:
        pass

    @torch.no_grad()
    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        """The step's embeddings, and of each anchor what other rows need to know of its loss. Two comm.sums."""
        rows = range(outputs.step * self.rows_per_step, (outputs.step + 1) * self.rows_per_step)
        own = {r.row: torch.cat([_by_image(r.embeddings), _weights(r)[..., None]], -1) for r in outputs.rows}
        whole = in_position_order(own, rows, comm).flatten(0, 2)
        known = Step(whole[:, :-1], whole[:, -1].log(), whole[:, -1], 0)
        per_row = len(whole) // len(rows)
        steps = {row.row: known._replace(first=(row.row - rows.start) * per_row) for row in outputs.rows}
        pulls = {r.row: _log_pull(r.embeddings, _weights(r), steps[r.row], self.options.temperature) for r in outputs.rows}
        log_pull = in_position_order(pulls, rows, comm).flatten()
        return {row: step._replace(log_pull=log_pull) for row, step in steps.items()}

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        return nt_xent(outputs.embeddings, targets[outputs.row], self.options.temperature)

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
        pass

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        return health.spread_sums(torch.cat([row.embeddings.detach().flatten(0, 1) for row in outputs.rows]))

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        return health.spread(sums)

    def state(self) -> PositionOrderedState:
        return PositionOrderedState(torch.zeros(0, dtype=torch.int64), {})

    def load_state(self, state: PositionOrderedState, comm: Comm) -> None:
        pass


def nt_xent(embeddings: Tensor, step: Step, temperature: float) -> Tensor:
    """NT-Xent (eq. 1) of the images of one row, [R]: mean over anchors and positives.

    embeddings: [V, R, D]. Of an anchor a with positive p and negatives n (views of other images; with two views per image that is
    the paper's sum over all k != i), s being cosines over temperature and w the images' weights:

        l(a, p) = -s(a, p) + log(exp s(a, p) + sum_n w_n exp s(a, n)) = softplus(N_a - s(a, p)), N_a = log sum_n w_n exp s(a, n)

    Several positives do not stand in each other's denominators (as in VISSL's multi-crop SimCLR). An embedding is also a negative
    of the anchors of other rows. These hold it without gradient, so what their losses want of it is added here: anchor b pulls
    on it by w_b mean_p sigmoid(N_b - s(b, p)) exp(s(b, a) - N_b), the derivative of a term whose value is taken away again.
    """
    cosine_pp, log_negatives, cosine_n = _terms(embeddings, step, temperature)
    views = len(embeddings)
    other = ~torch.eye(views, dtype=torch.bool, device=embeddings.device)
    anchor = (F.softplus(log_negatives[..., None] - cosine_pp) * other).sum(-1) / (views - 1)  # [R, V]
    pulled = (cosine_n + step.log_pull).exp().sum(-1)  # [R, V]
    return (anchor + pulled - pulled.detach()).mean(1)


def _log_pull(embeddings: Tensor, weight: Tensor, step: Step, temperature: float) -> Tensor:
    """[R, V]: log(w mean_p sigmoid(N - s(p))) - N of each anchor of a row."""
    cosine_pp, log_negatives, _ = _terms(embeddings, step, temperature)
    other = ~torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    missed = (torch.sigmoid(log_negatives[..., None] - cosine_pp) * other).sum(-1) / (len(embeddings) - 1)
    return (weight * missed).log() - log_negatives


def _terms(embeddings: Tensor, step: Step, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of a row's anchors: cosines to the own image's views [R, V, V], N [R, V], cosines to all of the step [R, V, n], -inf where
    it is the own image; all over temperature."""
    z_rvd = _by_image(embeddings)
    cosine_pp = z_rvd @ z_rvd.transpose(1, 2) / temperature
    number = torch.arange(len(step.embeddings), device=z_rvd.device) // z_rvd.shape[1]
    own = torch.arange(len(z_rvd), device=z_rvd.device) + step.first // z_rvd.shape[1]
    lowest = torch.finfo(z_rvd.dtype).min / 4  # instead of -inf, for a step in which an image is alone
    cosine_n = (z_rvd @ step.embeddings.T / temperature).masked_fill((number == own[:, None])[:, None], lowest)
    return cosine_pp, (cosine_n + step.log_weight.clamp_min(lowest)).logsumexp(-1), cosine_n


def _by_image(embeddings: Tensor) -> Tensor:
    """[V, R, D] to [R, V, D]."""
    return embeddings.transpose(0, 1)


def _weights(row: RowOutputs) -> Tensor:
    """[R, V]"""
    return row.weight[:, None].expand(-1, len(row.embeddings))
