"""The random parameters of a view: which uniform number decides what, and the columns that hold the results."""

from __future__ import annotations

import itertools

import numpy as np

from swav_platform.config import Photometric

TRIES = 10
"""Proposed crops before the central one is used (torchvision's RandomResizedCrop)."""

# Uniform numbers of a view. Their order determines the stream: append, never insert.
AREA, RATIO = slice(0, TRIES), slice(TRIES, 2 * TRIES)
TOP, LEFT, FLIP = range(20, 23)
JITTER, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SIGMA, SOLARISE = range(23, 33)
SLOTS = SOLARISE + 1

GEOMETRY = ("top", "left", "height", "width", "flip", "source_height", "source_width")
"""The crop in pixels of the upright image, whether it is mirrored, and the size of that image."""

PHOTOMETRIC = ("jitter", "order", "brightness", "contrast", "saturation", "hue", "grey", "blur_sigma", "solarise")
"""Flags are 0 or 1; order is an index into ORDERS; blur_sigma is in pixels of the view, 0 for no blur."""

PARAMS = GEOMETRY + PHOTOMETRIC
COLUMN = {name: number for number, name in enumerate(PARAMS)}

ORDERS = tuple(itertools.permutations(range(4)))
"""Orders of brightness 0, contrast 1, saturation 2, hue 3."""

NEUTRAL = np.array([0, 0, 1, 1, 1, 0, 0, 0, 0], dtype=np.float32)
"""Photometric parameters that change nothing."""


def photometric_params(uniforms: np.ndarray, recipe: Photometric) -> np.ndarray:
    """Photometric parameters float32 [..., len(PHOTOMETRIC)] from uniforms float64 [..., SLOTS].

    Ranges as torchvision's ColorJitter: factors from max(0, 1 - strength) to 1 + strength, hue from -hue to hue.
    """
    u = uniforms
    drawn = np.empty((*u.shape[:-1], len(PHOTOMETRIC)), dtype=np.float32)
    drawn[..., 0] = u[..., JITTER] < recipe.jitter
    drawn[..., 1] = np.floor(u[..., ORDER] * len(ORDERS))
    strengths = ((2, BRIGHTNESS, recipe.brightness), (3, CONTRAST, recipe.contrast), (4, SATURATION, recipe.saturation))
    for column, slot, strength in strengths:
        drawn[..., column] = _between(u[..., slot], max(0.0, 1 - strength), 1 + strength)
    drawn[..., 5] = _between(u[..., HUE], -recipe.hue, recipe.hue)
    drawn[..., 6] = u[..., GREY] < recipe.grey
    drawn[..., 7] = np.where(u[..., BLUR] < recipe.blur, _between(u[..., SIGMA], *recipe.blur_sigma), 0.0)
    drawn[..., 8] = u[..., SOLARISE] < recipe.solarise
    return drawn


def _between(uniform: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * uniform
