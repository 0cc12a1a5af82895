"""Codes with equal prototype mass: the Sinkhorn-Knopp algorithm over the step, in the log domain."""

from __future__ import annotations

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
    prior: Tensor | None = None,
    weight: Tensor | None = None,
    bound: float = 1.0,
) -> Tensor:
    """Soft codes with equal prototype mass (Caron et al. 2020, eq. 3-5; Cuturi 2013).

    Iterates on Q = exp(scores / epsilon): each prototype to mass 1/K over the samples of all ranks, then each sample to
    mass 1/B. The factors 1/K and 1/B only scale, so they are left out and each code sums to 1 at the end.

    scores: [b, K] or [G, b, K], this rank's samples of G independent problems that travel together; b may differ between
        ranks. float32 is worked in, float64 stays; lower precision is raised.
    prior: positive [K], masses wanted instead of equal ones (only their ratios matter).
    weight: [b] or [G, b] in [0, 1], how much each sample counts in the prototypes' masses; absent: all count.
    bound: no |score| is larger (1 for cosines, inf for unknown). Where exp might leave float32 within it, the first
        iteration subtracts each prototype's largest score.

    One comm.sum of [G, K] numbers an iteration, and one comm.max before them if 2 bound / epsilon > 80.
    Returns codes in the shape of scores, float32 (float64 for float64), each summing to 1.
    """
    log_q = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    if 2 * bound / epsilon > _SAFE_EXPONENT:
        log_q = log_q - comm.max(log_q.amax(-2)).unsqueeze(-2)
    else:
        log_q = log_q - bound / epsilon
    log_prior = 0.0 if prior is None else prior.to(log_q.dtype).log()
    counts = 1.0 if weight is None else weight.to(log_q.dtype).unsqueeze(-1)
    for _ in range(iterations):
        # From the second iteration on each mass lies between 1/K and B, since no sample took more than K from it.
        mass = comm.sum((counts * log_q.exp()).sum(-2)).clamp_min(torch.finfo(log_q.dtype).tiny)
        log_q = log_q + (log_prior - mass.log()).unsqueeze(-2)
        log_q = log_q.log_softmax(-1)
    return log_q.exp()
