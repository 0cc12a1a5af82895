"""Many images on one sheet, for a person's eyes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

_GAP = 4


def contact_sheet(images: Sequence[np.ndarray], columns: int, cell: int) -> Image.Image:
    """Images uint8 [H, W, 3] of any sizes, line by line, each fitted into a square cell of `cell` pixels, on white."""
    lines = -(-len(images) // columns)
    pitch = cell + _GAP
    sheet = Image.new("RGB", (max(columns, 1) * pitch + _GAP, max(lines, 1) * pitch + _GAP), "white")
    for number, pixels in enumerate(images):
        image = _fitted(Image.fromarray(pixels), cell)
        left = _GAP + number % columns * pitch + (cell - image.width) // 2
        top = _GAP + number // columns * pitch + (cell - image.height) // 2
        sheet.paste(image, (left, top))
    return sheet


def _fitted(image: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(image.size)
    small = max(image.size) < cell  # enlarged pixels should look like pixels
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
