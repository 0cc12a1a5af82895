"""Measures of representations, from a sample of a step's images. Pure functions in float64 on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WIDEST = 1024  # dimensions of embeddings for which LiDAR is computed, whose cost is cubic
_LIDAR_RIDGE = 1e-4  # delta of the paper
_RANKME_RIDGE = 1e-7  # epsilon of the paper


def measures(embeddings: Tensor, features: Tensor) -> dict[str, float]:
    """By metric name; a measure that the sample is too small for, or that is not finite, is absent.

    embeddings: [n, V, D], unit length. features: [n, F], [n, 0] if unknown.
    """
    found: dict[str, float] = {}
    if len(embeddings) < 2 or not embeddings.isfinite().all():
        return found
    found["health/embedding_norm"] = embeddings.norm(dim=-1).mean().item()
    found["health/rankme"] = rankme(embeddings[:, 0])
    if features.shape[1] and features.isfinite().all():
        found["health/rankme_backbone"] = rankme(features)
    if embeddings.shape[1] > 1:
        found["health/separation"] = separation(embeddings)
        if embeddings.shape[2] <= _WIDEST:
            found["health/lidar"] = lidar(embeddings)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def rankme(z: Tensor) -> float:
    """RankMe of [n, D]: exp of the entropy of the normalised singular values (Garrido et al. 2023, arXiv 2210.02885, eq. 2).

    At most min(n, D). The mean is not removed, as in the paper.
    """
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(1e-300) + _RANKME_RIDGE
    return math.exp(-torch.xlogy(share, share).sum().item())


def lidar(z: Tensor) -> float:
    """LiDAR of [n, V, D]: the effective rank of the linear discriminant between images (Thilak et al. 2023, arXiv 2312.04000).

    The surrogate classes are the images, their samples the V views of multi-crop.
    """
    n, views, dim = z.shape
    means = z.mean(1)
    within = (z - means[:, None]).flatten(0, 1)
    sigma_w = within.T @ within / (n * (views - 1)) + _LIDAR_RIDGE * torch.eye(dim, dtype=z.dtype)
    between = means - means.mean(0)
    sigma_b = between.T @ between / (n - 1)
    values, vectors = torch.linalg.eigh(sigma_w)
    root = vectors * values.clamp_min(_LIDAR_RIDGE / 2).rsqrt()
    share = torch.linalg.eigvalsh(root.T @ sigma_b @ root).clamp_min(0)
    share = share / share.sum().clamp_min(1e-300) + _LIDAR_RIDGE
    return math.exp(-torch.xlogy(share, share).sum().item())


def separation(z: Tensor) -> float:
    """Variance between images over variance between views of one image, of [n, V, D], after each view's own mean is removed.

    The F ratio of a two-way analysis of variance: its expected value is 1 if views of different images are as alike as views of one.
    """
    n, views, _ = z.shape
    z = z - z.mean(0)
    means = z.mean(1)
    between = views * means.square().sum() / (n - 1)
    within = (z - means[:, None]).square().sum() / ((n - 1) * (views - 1))
    return (between / within.clamp_min(1e-300)).item()
