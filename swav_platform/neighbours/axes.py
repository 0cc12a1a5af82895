"""The two directions in which vectors differ most. They need no search library, so the service computes maps with them too."""

from __future__ import annotations

import numpy as np


def two_axes(covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """Axes float64 [D, 2] of the largest variance, and their share of the whole. covariance: float64 [D, D], up to a factor."""
    sizes, axes = np.linalg.eigh(covariance)
    chosen = axes[:, ::-1][:, :2]
    # Eigenvectors have no sign of their own; this one gives the same picture each time.
    chosen = chosen * np.sign(np.take_along_axis(chosen, np.abs(chosen).argmax(axis=0)[None], axis=0))
    return chosen, float(sizes[::-1][:2].sum() / max(sizes.sum(), 1e-12))
