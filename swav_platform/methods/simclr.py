"""SimCLR: views of one image attract each other and repel those of all other images (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.methods import health
from swav_platform.methods.comm import Comm, in_position_order
from swav_platform.methods.method import Method, RowOutputs, StepOutputs, Targets
from swav_platform.methods.network import build_projection_network


class Step(NamedTuple):
    """All views of the step's images, without gradient: n = S * R * V entries, ordered by row, image and view."""

    embeddings: Tensor  # [n, D]
    log_weight: Tensor  # [n], of the image
    log_pull: Tensor  # [n], how strongly an anchor repels each of its negatives, see `nt_xent`
    first: int  # index of the first entry of the row itself


class SimClr(Method):
    """Every view is an anchor. Its positives are the other views of its image, its negatives all views of other images."""

    views: Mapping[str, ViewGroup]

    def __init__(self, config: Config) -> None:
        self.config, self.options, self.views = config, config.method, config.views
        self.rows_per_step = config.rows_per_step

    def modules(self, encoder: nn.Module) -> nn.Module:
        return build_projection_network(encoder, self.config)

    @torch.no_grad()
    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        """The step's embeddings, and for each anchor the part of its loss that other rows need. Costs two comm.sums."""
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

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        return health.spread_sums(torch.cat([row.embeddings.detach().flatten(0, 1) for row in outputs.rows]))

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        negatives = (self.config.train.batch - 1) * sum(group.count for group in self.views.values())
        return {"health/loss_minus_chance": loss - math.log1p(negatives)} | health.spread(sums)


def nt_xent(embeddings: Tensor, step: Step, temperature: float) -> Tensor:
    """NT-Xent (eq. 1) of the images of one row, averaged over anchors and positives.

    embeddings: [V, R, D]. Returns [R].

    For an anchor a with positive p and negatives n, s is the cosine over the temperature and w the images' weights:

        `N_a = log sum_n w_n exp s(a, n)`
        `l(a, p) = -s(a, p) + log(exp s(a, p) + exp N_a) = softplus(N_a - s(a, p))`

    With two views per image, this is the paper's sum over all k != i. With more, the denominator of one positive omits the
    others, as in VISSL's multi-crop SimCLR.

    An embedding is also a negative for anchors of other rows, which hold it without gradient. Their part of its gradient is added
    here, as a term for each anchor b whose value is 0 and whose derivative by s(b, a) is
    `w_b mean_p sigmoid(N_b - s(b, p)) exp(s(b, a) - N_b)`.
    """
    cosine_pp, log_negatives, cosine_n = _terms(embeddings, step, temperature)
    views = len(embeddings)
    other = ~torch.eye(views, dtype=torch.bool, device=embeddings.device)
    anchor = (F.softplus(log_negatives[..., None] - cosine_pp) * other).sum(-1) / (views - 1)  # [R, V]
    pulled = (cosine_n + step.log_pull).exp().sum(-1)  # [R, V]
    return (anchor + pulled - pulled.detach()).mean(1)


def _log_pull(embeddings: Tensor, weight: Tensor, step: Step, temperature: float) -> Tensor:
    """[R, V]: log(w mean_p sigmoid(N - s(p))) - N for each anchor of a row."""
    cosine_pp, log_negatives, _ = _terms(embeddings, step, temperature)
    other = ~torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    missed = (torch.sigmoid(log_negatives[..., None] - cosine_pp) * other).sum(-1) / (len(embeddings) - 1)
    return (weight * missed).log() - log_negatives


def _terms(embeddings: Tensor, step: Step, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of a row's anchors, with cosines divided by the temperature.

    Returns cosines to views of the same image [R, V, V], N [R, V], and cosines to all views of the step [R, V, n], with views of
    the same image masked.
    """
    z_rvd = _by_image(embeddings)
    cosine_pp = z_rvd @ z_rvd.transpose(1, 2) / temperature
    number = torch.arange(len(step.embeddings), device=z_rvd.device) // z_rvd.shape[1]
    own = torch.arange(len(z_rvd), device=z_rvd.device) + step.first // z_rvd.shape[1]
    lowest = torch.finfo(z_rvd.dtype).min / 4  # not -inf, which gives NaN if a step has a single readable image
    cosine_n = (z_rvd @ step.embeddings.T / temperature).masked_fill((number == own[:, None])[:, None], lowest)
    return cosine_pp, (cosine_n + step.log_weight.clamp_min(lowest)).logsumexp(-1), cosine_n


def _by_image(embeddings: Tensor) -> Tensor:
    """[V, R, D] -> [R, V, D]"""
    return embeddings.transpose(0, 1)


def _weights(row: RowOutputs) -> Tensor:
    """[R, V]: the weight of each view's image."""
    return row.weight[:, None].expand(-1, len(row.embeddings))
