"""The two directions in which vectors differ most. They need no search library, so the service computes maps with them too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_NAME = b"swav.axes"


@dataclass(frozen=True)
class Axes:
    """Where the coordinates of a map come from: mean float32 [D] and directions float32 [D, 2]."""

    mean: np.ndarray
    directions: np.ndarray

    def places(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, 2] of vectors [n, D]."""
        found: np.ndarray = (vectors - self.mean) @ self.directions
        return found

    def as_metadata(self) -> dict[bytes, bytes]:
        """For the schema of a table of places."""
        told = {"mean": self.mean.tolist(), "directions": self.directions.tolist()}
        return {_NAME: json.dumps(told).encode()}


def axes_of(metadata: Mapping[bytes, bytes] | None) -> Axes | None:
    """The axes in the metadata of a table; None if it was made in another way. Raises ValueError for damaged ones."""
    text = (metadata or {}).get(_NAME)
    if text is None:
        return None
    try:
        told = json.loads(text)
        found = Axes(np.array(told["mean"], np.float32), np.array(told["directions"], np.float32))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its axes: {error}") from error
    if found.directions.shape != (len(found.mean), 2):
        raise ValueError(f"its axes have the shape {found.directions.shape}")
    return found


def two_axes(covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """Axes float64 [D, 2] of the largest variance, and their share of the whole. covariance: float64 [D, D], up to a factor."""
    sizes, axes = np.linalg.eigh(covariance)
    chosen = axes[:, ::-1][:, :2]
    # Eigenvectors have no sign of their own; this one gives the same picture each time.
    chosen = chosen * np.sign(np.take_along_axis(chosen, np.abs(chosen).argmax(axis=0)[None], axis=0))
    chosen = np.pad(chosen, ((0, 0), (0, 2 - chosen.shape[1])))
    return chosen, float(sizes[::-1][:2].sum() / max(sizes.sum(), 1e-12))
