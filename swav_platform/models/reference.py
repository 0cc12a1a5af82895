"""Reference features: what a package's encoder computed when it was saved, on images that are part of the package.

Loading compares: damage, another precision and a broken library show as another direction of the features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from PIL import Image
from torch import nn

from swav_platform.errors import UserError
from swav_platform.images.views.photometric import MEAN, STD

FILE = "reference.safetensors"
IMAGES = 4


def probe(size: int) -> np.ndarray:
    """IMAGES smooth coloured images, normalised as the encoder expects: float32 [IMAGES, 3, size, size]."""
    return normalised(_drawn(size))


def normalised(images: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W]."""
    values = (images.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def _drawn(size: int) -> np.ndarray:
    noise = np.random.Generator(np.random.PCG64(7))  # seeded: every machine draws the same images
    grids = [noise.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(IMAGES)]
    return np.stack([np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) for grid in grids])


def save_reference(folder: Path, encoder: nn.Module, size: int) -> None:
    """Writes FILE: images uint8 [n, size, size, 3] and their features float32 [n, D]."""
    images = _drawn(size)
    with torch.inference_mode():
        features = encoder(torch.from_numpy(normalised(images))).float().numpy()
    content = {"images": images, "features": np.ascontiguousarray(features)}
    (folder / FILE).write_bytes(safetensors.numpy.save(content))


def load_reference(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Images float32 [n, 3, size, size] and features float32 [n, D]. None for a package of an older version, which has none."""
    if not (folder / FILE).is_file():
        return None
    try:
        content = safetensors.numpy.load_file(folder / FILE)
        return normalised(content["images"]), content["features"].astype(np.float32)
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{folder / FILE} can't be read ({type(error).__name__}: {error}). Copy or export the package again."
        ) from error
