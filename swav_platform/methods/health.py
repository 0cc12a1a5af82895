"""Signs that a run learns, from sums over the step: they travel with the gradients and cost no collective of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spread_sums(embeddings: Tensor, scores: Tensor, codes: Tensor) -> Tensor:
    """embeddings [n, D], scores and codes [n, K] of this rank to [2 + K + D + D * D] numbers that add up over ranks."""
    entropy = -torch.xlogy(codes, codes).sum()
    used = torch.bincount(scores.argmax(-1), minlength=scores.shape[-1]).to(codes.dtype)
    second = embeddings.T @ embeddings
    return torch.cat([codes.new_tensor([len(codes)]), entropy[None], used, embeddings.sum(0), second.flatten()])


def spread(sums: Tensor, prototypes: int, dim: int) -> dict[str, float]:
    """Metrics from the `spread_sums` of all ranks.

    code_entropy: mean entropy of a code, nats; ln K is a code that says nothing.
    prototypes_used: how many are nearest to some view of this step, before codes are balanced.
    feature_std: mean deviation of embeddings by dimension, times sqrt(D): 1 when spread over the sphere, 0 when collapsed.
    effective_rank: exp of the entropy of the covariance's spectrum (Roy and Vetterli 2007): dimensions in use, at most D.
    """
    n, entropy, used, total, second = sums.double().cpu().split([1, 1, prototypes, dim, dim * dim])
    mean = total / n
    covariance = second.view(dim, dim) / n - torch.outer(mean, mean)
    spectrum = torch.linalg.eigvalsh(covariance).clamp_min(0) if covariance.isfinite().all() else torch.zeros(dim)
    share = spectrum / spectrum.sum().clamp_min(1e-30)
    return {
        "health/code_entropy": (entropy / n).item(),
        "health/prototypes_used": float((used > 0).sum()),
        "health/feature_std": covariance.diagonal().clamp_min(0).sqrt().mean().item() * math.sqrt(dim),
        "health/effective_rank": (-torch.xlogy(share, share).sum()).exp().item(),
    }
