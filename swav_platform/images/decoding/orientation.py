"""Turning pixels upright, by an EXIF orientation 1-8."""

from __future__ import annotations

import numpy as np


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, 3] stored under an EXIF orientation, as a viewer shows them."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[tuple(slice(None, None, -1 if back else 1) for back in mirrored(orientation))])


def mirrored(orientation: int) -> tuple[bool, bool]:
    """Whether the rows, and the columns, of the upright image run against those of the file."""
    return orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
