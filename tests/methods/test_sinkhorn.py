from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swav_platform.methods.comm import LocalComm
from swav_platform.methods.sinkhorn import sinkhorn


class CountingComm(LocalComm):
    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def sum(self, x: Tensor) -> Tensor:
        self.calls["sum"] += 1
        self.numbers = x.numel()
        return x

    def max(self, x: Tensor) -> Tensor:
        self.calls["max"] += 1
        return x


def oracle(scores: Tensor, epsilon: float, iterations: int, prior: Tensor | None = None) -> Tensor:
    """The algorithm as in the paper, with its constants, in float64."""
    q = torch.exp(scores.double() / epsilon).T  # [K, B]
    k, b = q.shape
    r = torch.full((k,), 1 / k, dtype=torch.float64) if prior is None else prior.double() / prior.double().sum()
    q /= q.sum()
    for _ in range(iterations):
        q *= (r / q.sum(1))[:, None]
        q *= (1 / b) / q.sum(0)
    return (q * b).T


def cosines(kind: str, b: int = 96, k: int = 40, dim: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    prototypes = F.normalize(torch.randn(k, dim, generator=generator), dim=1)
    features = {
        "spread": torch.randn(b, dim, generator=generator),
        "collapsed": torch.randn(1, dim, generator=generator).expand(b, dim),
        "nearly collapsed": torch.randn(1, dim, generator=generator) + 1e-3 * torch.randn(b, dim, generator=generator),
        "on prototypes": prototypes[torch.arange(b) % 7],
    }
    if kind == "one-hot":
        return F.one_hot(torch.arange(b) % k, k).float()
    if kind == "signs":
        return F.one_hot(torch.arange(b) % 3, k).float() * 2 - 1
    return F.normalize(features[kind], dim=1) @ prototypes.T


KINDS = ["spread", "collapsed", "nearly collapsed", "on prototypes", "one-hot", "signs"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon", [0.05, 0.03, 0.02, 0.005])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_float32_agrees_with_float64(kind: str, epsilon: float, iterations: int) -> None:
    scores = cosines(kind)
    codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations, comm=LocalComm())
    assert codes.dtype == torch.float32
    assert (codes - oracle(scores, epsilon, iterations)).abs().max() < 5e-6 * 0.05 / epsilon
    assert torch.allclose(codes.sum(1), torch.ones(len(codes)), atol=1e-5)


def test_large_scores_with_an_unknown_bound() -> None:
    scores = cosines("spread") * 10 - 300
    codes = sinkhorn(scores, epsilon=0.05, iterations=3, comm=LocalComm(), bound=float("inf"))
    assert (codes - oracle(scores + 300, 0.05, 3)).abs().max() < 1e-3  # rounding of 3e-5 in scores of 300, divided by epsilon
    assert not sinkhorn(scores, epsilon=0.05, iterations=3, comm=LocalComm()).allclose(codes, atol=1e-3)


def test_groups_are_independent_and_share_collectives() -> None:
    scores, comm = torch.stack([cosines("spread"), cosines("on prototypes")]), CountingComm()
    codes = sinkhorn(scores, epsilon=0.05, iterations=3, comm=comm)
    for g in range(2):
        assert torch.equal(codes[g], sinkhorn(scores[g], epsilon=0.05, iterations=3, comm=LocalComm()))
    assert comm.calls == {"sum": 3}
    assert comm.numbers == 2 * 40


@pytest.mark.parametrize(("epsilon", "calls"), [(0.05, {"sum": 3}), (0.025, {"sum": 3}), (0.02, {"sum": 3, "max": 1})])
def test_comm_max_is_called_only_where_needed(epsilon: float, calls: dict[str, int]) -> None:
    comm = CountingComm()
    sinkhorn(cosines("spread"), epsilon=epsilon, iterations=3, comm=comm)
    assert comm.calls == calls


def test_prior() -> None:
    prior = torch.arange(1, 41).float() ** -1.0
    codes = sinkhorn(cosines("spread"), epsilon=0.05, iterations=100, comm=LocalComm(), prior=prior)
    assert (codes - oracle(cosines("spread"), 0.05, 100, prior)).abs().max() < 1e-5
    assert torch.allclose(codes.mean(0), prior / prior.sum(), atol=1e-4)


def test_samples_without_weight_change_nothing() -> None:
    scores = cosines("spread")
    weight = torch.ones(len(scores))
    weight[::5] = 0
    codes = sinkhorn(scores, epsilon=0.05, iterations=3, comm=LocalComm(), weight=weight)
    assert (codes[weight > 0] - oracle(scores[weight > 0], 0.05, 3)).abs().max() < 5e-6
    assert sinkhorn(scores, epsilon=0.05, iterations=3, comm=LocalComm(), weight=weight * 0).isfinite().all()


def test_lower_precision_is_converted_to_float32() -> None:
    scores = cosines("spread").bfloat16()
    codes = sinkhorn(scores, epsilon=0.05, iterations=3, comm=LocalComm())
    assert torch.equal(codes, sinkhorn(scores.float(), epsilon=0.05, iterations=3, comm=LocalComm()))
