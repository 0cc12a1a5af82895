"""The geometry of views: chooses a box of the image and resizes it into its place in the row.

The same decisions as torchvision's RandomResizedCrop, from random numbers that the caller passes in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from swav_platform.config import ViewGroup
from swav_platform.images.decoding.plain_jpeg import Decoded
from swav_platform.images.views import params, resize_kernel

SPARE = 1.6
"""Pixels of a reduced image for each pixel of a view. A reduced JPEG is nearly the mean of its pixels. At this ratio views differ
by less than half a level on average, and 99 of 100 numbers by two or less."""


class Proposal(NamedTuple):
    """The random proposal for a view, made before the image's size is known."""

    areas: Sequence[float]  # shares of the image's area, one per try
    ratios: Sequence[float]  # width / height, one per try
    top: float  # uniform in (0, 1)
    left: float
    flip: bool


class Crop(NamedTuple):
    """A box in pixels of the upright image."""

    top: int
    left: int
    height: int
    width: int


def proposals(uniforms: np.ndarray, group: ViewGroup) -> list[list[Proposal]]:
    """Proposals [R][V] from uniforms float64 [R, V, SLOTS]. Ratios are uniform in their logarithm."""
    low, high = group.scale
    areas = (low + (high - low) * uniforms[..., params.AREA]).tolist()
    low, high = np.log(group.ratio)
    ratios = np.exp(low + (high - low) * uniforms[..., params.RATIO]).tolist()
    rest = uniforms[..., [params.TOP, params.LEFT, params.FLIP]].tolist()
    return [
        [Proposal(areas[r][v], ratios[r][v], top, left, flip < group.flip) for v, (top, left, flip) in enumerate(rest[r])]
        for r in range(len(rest))
    ]


def choose(height: int, width: int, proposal: Proposal, ratio: tuple[float, float]) -> Crop:
    """The first proposed box that fits an image of this size, else the largest central one with a ratio in range."""
    total = height * width
    for share, shape in zip(proposal.areas, proposal.ratios, strict=True):
        area = share * total
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(proposal.top * (height - h + 1)), int(proposal.left * (width - w + 1)), h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = min(width, round(height * ratio[1]))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def reduction(boxes: Sequence[Sequence[Crop]], groups: Sequence[ViewGroup]) -> int:
    """By how much an image may be reduced (1, 2, 4 or 8) before a view lacks pixels. boxes: those of each group."""
    spare = min(min(box.height, box.width) / group.size for group, mine in zip(groups, boxes, strict=True) for box in mine)
    return next(parts for parts in (8, 4, 2, 1) if parts == 1 or spare >= parts * SPARE)


def cut(image: Decoded, crop: Crop, flip: bool, interpolation: str, out: np.ndarray) -> None:
    """Writes the crop of an image, resized with antialiasing and mirrored if asked, into out: uint8 [H, W, 3].

    The filter (`bilinear` or `bicubic`) sees only the box, as if it had been cut out first.
    """
    top, left, height, width = crop
    pixels, parts, (above, beside) = image.pixels, image.parts, image.before
    box = ((top + above) / parts, (left + beside) / parts, height / parts, width / parts)
    resize_kernel.resize(pixels.reshape(len(pixels), -1), *box, flip, interpolation == "bicubic", out)
