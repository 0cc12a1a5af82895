"""Health metrics of a run, computed from sums over the step. The sums share the gradients' collective."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from swav_platform.methods.method import StepOutputs


def spread_sums(embeddings: Tensor) -> Tensor:
    """Count, sum and second moment of embeddings [n, D] of this rank, as [1 + D + D * D] numbers to sum over ranks."""
    second = embeddings.T @ embeddings
    return torch.cat([embeddings.new_tensor([len(embeddings)]), embeddings.sum(0), second.flatten()])


def spread(sums: Tensor) -> dict[str, float]:
    """Metrics from the `spread_sums` of all ranks.

    feature_std: standard deviation, averaged over dimensions, times sqrt(D). 1: spread over the sphere; 0: collapsed.
    effective_rank: exp of the entropy of the covariance's spectrum (Roy and Vetterli 2007). The number of dimensions in use.
    """
    dim = math.isqrt(len(sums))  # D^2 < 1 + D + D^2 < (D + 1)^2
    n, total, second = sums.double().cpu().split([1, dim, dim * dim])
    mean = total / n
    covariance = second.view(dim, dim) / n - torch.outer(mean, mean)
    spectrum = torch.linalg.eigvalsh(covariance).clamp_min(0) if covariance.isfinite().all() else torch.zeros(dim)
    share = spectrum / spectrum.sum().clamp_min(1e-30)
    return {
        "health/feature_std": covariance.diagonal().clamp_min(0).sqrt().mean().item() * math.sqrt(dim),
        "health/effective_rank": (-torch.xlogy(share, share).sum()).exp().item(),
    }


def prototype_sums(outputs: StepOutputs, views: Sequence[int], heads: Sequence[int], codes: Tensor | None = None) -> Tensor:
    """Sums over this rank's rows and `views`, as [2 + K + 1 + D + D * D] numbers to sum over ranks. K counts all heads.

    codes: [n, K] of the same views, row after row. None if labels are hard.
    """
    embeddings, scores = (
        torch.cat([getattr(row, name)[list(views)].detach().flatten(0, 1) for row in outputs.rows])
        for name in ("embeddings", "scores")
    )
    entropy = scores.new_zeros(()) if codes is None else -torch.xlogy(codes, codes).sum() / len(heads)
    used = [torch.bincount(s.argmax(-1), minlength=s.shape[-1]) for s in scores.split(list(heads), -1)]
    counts = [scores.new_tensor([len(scores)]), entropy[None].to(scores), torch.cat(used).to(scores)]
    return torch.cat([*counts, spread_sums(embeddings)])


def prototype_numbers(heads: Sequence[int], dim: int) -> int:
    """Length of `prototype_sums` for embeddings of `dim` dimensions."""
    return 3 + sum(heads) + dim + dim * dim


def of_prototypes(sums: Tensor, loss: float, heads: Sequence[int]) -> dict[str, float]:
    """Metrics from the `prototype_sums` of all ranks and the step's loss.

    loss_minus_ln_k: difference between the loss and ln K, the loss of uniform predictions.
    code_entropy: mean entropy of a code in nats. ln K means uniform codes.
    prototypes_used: number of prototypes, of all heads, that are the nearest to some view of the step before balancing.
    """
    n, entropy, used = sums[: 2 + sum(heads)].double().cpu().split([1, 1, sum(heads)])
    return {
        "health/loss_minus_ln_k": loss - sum(math.log(k) for k in heads) / len(heads),
        "health/code_entropy": (entropy / n).item(),
        "health/prototypes_used": float((used > 0).sum()),
        **spread(sums[2 + sum(heads) :]),
    }
