"""Codes with equal prototype mass: the Sinkhorn-Knopp algorithm over the step, in the log domain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from swav_platform.methods.comm import Comm

_SAFE_EXPONENT = 80.0  # exp(-80) is a normal float32


def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float,
    iterations: int,
    comm: Comm,
    heads: Sequence[int] | None = None,
    prior: Tensor | None = None,
    weight: Tensor | None = None,
    bound: float = 1.0,
) -> Tensor:
    """Soft codes with equal prototype mass (Caron et al. 2020, eq. 3-5; Cuturi 2013).

    Iterates on Q = exp(scores / epsilon): scales each prototype to mass 1/K over the samples of all ranks, then each sample to
    mass 1/B. The factors 1/K and 1/B only scale Q, so they are omitted, and each code sums to 1 at the end.

    scores: [b, K], or [G, b, K] for G independent problems that share each collective. b is this rank's number of samples and
        may differ between ranks. Computes in float32, or in float64 for float64; lower precision is converted to float32.
    heads: sizes of the heads that make up K. Heads are independent problems, and each head's code sums to 1. Default: one head.
    prior: [K], positive, the prototypes' masses instead of equal ones. Only their ratios matter.
    weight: [b] or [G, b] in [0, 1], how much each sample counts in the prototypes' masses. Default: 1.
    bound: upper bound of |score| (1 for cosines, inf if unknown). If exp could leave the range of float32 within this bound,
        each prototype's largest score is subtracted first.

    Each iteration costs one comm.sum of [G, K] numbers. If 2 bound / epsilon > 80, one comm.max precedes them.
    Returns codes in the shape of scores, float32 or float64.
    """
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    # Q = diag(u) exp(logits) diag(v). softmax applies u. log v stays float64, so that rounding errors do not accumulate.
    if 2 * bound / epsilon > _SAFE_EXPONENT:
        log_v = -comm.max(logits.amax(-2)).double()
    else:
        log_v = logits.new_full((), -bound / epsilon, dtype=torch.float64).expand(*logits.shape[:-2], logits.shape[-1])
    log_prior = 0.0 if prior is None else prior.double().log()
    counts = 1.0 if weight is None else weight.to(logits.dtype).unsqueeze(-1)
    q = _add(logits, log_v).exp()
    for _ in range(iterations):
        # From the second iteration on, each mass is between 1/K and B, because no sample had more than K of it.
        mass = comm.sum((counts * q).sum(-2)).clamp_min(torch.finfo(q.dtype).tiny)
        log_v = log_v + log_prior - mass.double().log()
        q = torch.cat([head.softmax(-1) for head in _add(logits, log_v).split(list(heads or scores.shape[-1:]), -1)], -1)
    return q


def power_law(heads: Sequence[int], exponent: float) -> Tensor:
    """Masses [K] proportional to k^-exponent, k = 1 ... in each head (Assran et al. 2023, arXiv 2210.07277, section 4)."""
    return torch.cat([torch.arange(1, k + 1, dtype=torch.float64) ** -exponent for k in heads])


def _add(logits: Tensor, log_v: Tensor) -> Tensor:
    return logits + log_v.to(logits.dtype).unsqueeze(-2)
