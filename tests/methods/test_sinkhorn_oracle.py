"""Codes against a float64 log-domain oracle over the range of epsilon, with unequal shares on up to four ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swav_platform.methods.comm import LocalComm
from swav_platform.methods.sinkhorn import sinkhorn

B = 40
KINDS = ("random", "collapsed", "outlier", "one-hot")


def oracle(scores: Tensor, epsilon: float, iterations: int = 3) -> Tensor:
    """The masses 1/K and 1/B only scale, so plain normalisation gives the same codes."""
    log_q = scores.double() / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(-2, keepdim=True)
        log_q = log_q - log_q.logsumexp(-1, keepdim=True)
    return log_q.exp()


def cosines(kind: str, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    prototypes = F.normalize(torch.randn(k, 16, generator=generator, dtype=torch.float64), dim=1)
    features = torch.randn(B, 16, generator=generator, dtype=torch.float64)
    if kind == "one-hot":
        return F.one_hot(torch.arange(B) % k, k).double()
    if kind == "collapsed":
        features = features[:1] + 1e-4 * features
    if kind == "outlier":  # one sample far from all others, alone on a prototype
        features = prototypes[:1] + 0.05 * features
        features[7] = -prototypes[0]
    return F.normalize(features, dim=1) @ prototypes.T


def shares(ranks: int) -> list[int]:
    """Unequal numbers of samples per rank that add up to B."""
    own = [B // ranks - 3 * r for r in range(ranks)]
    return [own[0] + B - sum(own), *own[1:]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("k", [30, 3000])
@pytest.mark.parametrize("epsilon", [0.005, 0.0125, 0.05, 0.2, 1.0])
def test_within_1e_5_of_the_oracle(together: Callable, dtype: torch.dtype, k: int, epsilon: float) -> None:
    scores = torch.stack([cosines(kind, k) for kind in KINDS]).to(dtype)
    want = oracle(scores, epsilon)
    for ranks in (1, 2, 3, 4):
        parts = scores.split(shares(ranks), dim=1)
        codes = together(ranks, lambda comm: sinkhorn(parts[comm.rank], epsilon=epsilon, iterations=3, comm=comm))  # noqa: B023
        assert (torch.cat(codes, 1) - want).abs().max() < (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("epsilon", [0.02, 0.05])
def test_rows_may_move_between_ranks(together: Callable, ranks: int, epsilon: float) -> None:
    """Ranks hold different data (sorted by cluster). Permuting samples keeps each code; Sinkhorn on each rank alone does not."""
    scores = cosines("random", 30)
    scores = scores[scores.argmax(1).argsort()]
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))

    def codes(rows: Tensor, alone: bool = False) -> Tensor:
        parts = rows.split(shares(ranks))
        return torch.cat(
            together(ranks, lambda c: sinkhorn(parts[c.rank], epsilon=epsilon, iterations=3, comm=LocalComm() if alone else c))
        )

    assert (codes(scores)[order] - codes(scores[order])).abs().max() < 1e-12
    assert (codes(scores, alone=True)[order] - codes(scores[order], alone=True)).abs().max() > 0.1
    assert (codes(scores, alone=True) - oracle(scores, epsilon)).abs().max() > 0.1


def test_heads_are_independent_and_share_collectives(together: Callable) -> None:
    heads = [30, 7, 50]
    each = [cosines("random", k, seed=k) for k in heads]
    views = torch.stack([torch.cat(each, 1), torch.cat([s.flip(0) for s in each], 1)])
    parts = views.split(shares(3), dim=1)

    def work(comm):  # type: ignore[no-untyped-def]
        return sinkhorn(parts[comm.rank], epsilon=0.05, iterations=3, comm=comm, heads=heads), comm.calls

    done = together(3, work)
    assert all(calls == {"sum": 3} for _, calls in done)
    codes = torch.cat([q for q, _ in done], dim=1)
    for q, s in zip(codes.split(heads, -1), each, strict=True):
        assert (q[0] - oracle(s, 0.05)).abs().max() < 1e-10
        assert (q[1] - oracle(s.flip(0), 0.05)).abs().max() < 1e-10
