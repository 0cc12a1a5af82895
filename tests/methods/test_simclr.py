from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swav_platform.config import Config
from swav_platform.methods.comm import LocalComm
from swav_platform.methods.method import RowOutputs, StepOutputs
from swav_platform.methods.simclr import SimClr

S, R, D, TEMPERATURE = 5, 3, 6, 0.2


def method() -> SimClr:
    views = {"large": {"size": 16, "count": 2, "scale": (0.3, 1)}}
    tree = {
        "data": {"row_size": R},
        "views": views,
        "method": {"name": "simclr", "temperature": TEMPERATURE},
        "train": {"batch": S * R},
    }
    return SimClr(Config.model_validate(tree))


def raw(views: int) -> Tensor:
    return torch.randn(S, views, R, D, generator=torch.Generator().manual_seed(views), dtype=torch.float64)


def plain(z_svrd: Tensor, weight: Tensor) -> Tensor:
    """Reference: the whole step at once by plain autograd, image by image, with each pair's loss as -log of its probability."""
    z = F.normalize(z_svrd, dim=-1).permute(0, 2, 1, 3).flatten(0, 1)  # [images, V, D]
    w, total = weight.flatten(), z.new_zeros(())
    for i in range(len(z)):
        negatives = torch.cat([z[j] for j in range(len(z)) if j != i])
        counts = torch.cat([w[j].expand(len(z[j])) for j in range(len(z)) if j != i])
        for a in range(z.shape[1]):
            others = (counts * (negatives @ z[i, a] / TEMPERATURE).exp()).sum()
            for p in (p for p in range(z.shape[1]) if p != a):
                same = (z[i, a] @ z[i, p] / TEMPERATURE).exp()
                total = total - w[i] * (same / (same + others)).log() / z.shape[1] / (z.shape[1] - 1)
    return total / len(z)


def by_rows(z_svrd: Tensor, weight: Tensor, step: int, rank: int, size: int, comm: object) -> tuple[Tensor, Tensor]:
    """Loss and gradient [S, V, R, D] of one rank's rows, each with its own backward pass."""
    z = z_svrd.clone().requires_grad_()
    embeddings, one = F.normalize(z, dim=-1), method()
    rows = [RowOutputs(step * S + k, torch.arange(R), weight[k], embeddings[k], z[k, ..., :0]) for k in range(rank, S, size)]
    outputs = StepOutputs(step, tuple(rows))
    targets, total = one.targets(outputs, comm), torch.zeros(())
    for row in rows:
        loss = (row.weight * one.loss(row, targets)).sum() / (S * R)
        loss.backward(retain_graph=True)
        total = total + loss.detach()
    return total, z.grad


WEIGHTS = {"all": torch.ones(S, R), "some": torch.tensor([1.0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0.5, 1, 1]).view(S, R)}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gradients_row_by_row_are_those_of_the_whole_batch(together: Callable, views: int, ranks: int, weights: str) -> None:
    z, weight = raw(views), WEIGHTS[weights].double()
    whole = z.clone().requires_grad_()
    want = plain(whole, weight)
    want.backward()
    done = together(ranks, lambda comm: by_rows(z, weight, 3, comm.rank, comm.size, comm))
    assert abs(sum(loss for loss, _ in done) - want) < 1e-12
    assert (sum(gradient for _, gradient in done) - whole.grad).abs().max() < 1e-12


def test_the_comparison_can_fail() -> None:
    """Without the effect of a row's embeddings on other rows, the gradient differs."""
    z, weight = raw(2), torch.ones(S, R, dtype=torch.float64)
    whole = z.clone().requires_grad_()
    plain(whole, weight).backward()
    own, one = z.clone().requires_grad_(), method()
    embeddings = F.normalize(own, dim=-1)
    rows = [RowOutputs(k, torch.arange(R), weight[k], embeddings[k], z[k, ..., :0]) for k in range(S)]
    targets = one.targets(StepOutputs(0, tuple(rows)), LocalComm())
    incomplete = {row: step._replace(log_pull=step.log_pull * 0 - torch.inf) for row, step in targets.items()}
    sum((row.weight * one.loss(row, incomplete)).sum() / (S * R) for row in rows).backward()
    assert (own.grad - whole.grad).abs().max() > 1e-3


def test_two_views_are_the_papers_loss() -> None:
    """Cross-entropy over all 2N - 1 others (eq. 1)."""
    z, weight = raw(2), torch.ones(S, R, dtype=torch.float64)
    flat = F.normalize(z, dim=-1).transpose(0, 1).flatten(1, 2).flatten(0, 1)  # [2 N, D]
    logits = (flat @ flat.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    want = F.cross_entropy(logits, torch.arange(2 * S * R).roll(S * R))
    loss, _ = by_rows(z, weight, 0, 0, 1, LocalComm())
    assert abs(loss - want) < 1e-12


def test_a_step_in_which_only_one_image_counts() -> None:
    weight = torch.zeros(S, R, dtype=torch.float64)
    weight[2, 1] = 1
    loss, gradient = by_rows(raw(2), weight, 0, 0, 1, LocalComm())
    assert loss == 0
    assert (gradient == 0).all()
