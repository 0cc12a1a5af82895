"""Makes an evaluation set from a few photographs: patches, each labelled with its photograph.

Patches for training and for the bank come from the left part of each photograph, queries from the rest. Each patch is flipped and
recoloured at random, so that neither position nor colour alone identifies its photograph.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from swav_platform.config import ImagePolicy
from swav_platform.errors import UserError
from swav_platform.images.decoding.decode import decode

SIDE = 48
LEFT = 0.6  # share of a photograph's width from which training patches come
SIDES = (48, 96)  # a patch's side in the photograph, pixels

# Photographs inside the wheels of scikit-image and scikit-learn.
_PHOTOGRAPHS = (
    (
        "skimage",
        "data",
        ("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png"),
    ),
    (
        "skimage",
        "data",
        (
            "gravel.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "motorcycle_left.png",
            "page.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)


@dataclass(frozen=True)
class Patch:
    key: str  # photograph/number
    content: bytes  # JPEG


def photographs() -> dict[str, np.ndarray]:
    """Name -> uint8 [H, W, 3] of each installed photograph. Raises UserError if they are fewer than eight."""
    found = {}
    for package, folder, names in _PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        for name in names:
            path = Path(next(iter(spec.submodule_search_locations)), folder, name)
            if path.is_file():
                found[path.stem] = decode(path.read_bytes(), ImagePolicy())
    if len(found) < 8:
        raise UserError(
            f"The demo takes its photographs from the packages scikit-image and scikit-learn, but found only {len(found)} of 18. "
            "Run `make setup` again, or pass your own images with --data."
        )
    return found


def patches(photos: dict[str, np.ndarray], per_photo: int, *, left: bool, seed: int) -> Iterator[Patch]:
    """`per_photo` patches of each photograph in turn, from its left part or from the rest."""
    for number in range(per_photo):
        for place, (name, photo) in enumerate(photos.items()):
            rng = np.random.Generator(np.random.Philox(key=[seed, (number * len(photos) + place) * 2 + left]))
            image = Image.fromarray(_coloured(_cut(photo, left, rng), rng))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            yield Patch(f"{name}/{number:05d}", buffer.getvalue())


def _cut(photo: np.ndarray, left: bool, rng: np.random.Generator) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]: a random square of the part, resized and flipped at random."""
    border = round(photo.shape[1] * LEFT)
    part = photo[:, :border] if left else photo[:, border:]
    side = int(rng.integers(min(SIDES[0], *part.shape[:2]), min(SIDES[1], *part.shape[:2]) + 1))
    top, start = (int(rng.integers(0, extent - side + 1)) for extent in part.shape[:2])
    square = Image.fromarray(np.ascontiguousarray(part[top : top + side, start : start + side]))
    resized = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return resized[:, ::-1] if rng.random() < 0.5 else resized


def _coloured(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness and contrast x 0.5-1.5, saturation x 0-1.6, channels permuted with probability 0.5."""
    x = patch.astype(np.float32) * rng.uniform(0.5, 1.5)
    x = (x - x.mean()) * rng.uniform(0.5, 1.5) + x.mean()
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * rng.uniform(0.0, 1.6)
    order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
    coloured: np.ndarray = np.clip(x[..., order], 0, 255).astype(np.uint8)
    return coloured
