"""Labelled images for training: read once if they fit into memory, cropped by (seed, epoch, sample)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swav_platform.config import ImagePolicy
from swav_platform.data.index.lookup import Index
from swav_platform.evaluation.features import batches
from swav_platform.images.views.photometric import MEAN, STD

_HELD = 2 * 2**30  # bytes of decoded images


class Images:
    """Decoded images of an index, by number. Keeps up to 2 GiB of them, and reads the others each time."""

    def __init__(self, index: Index, policy: ImagePolicy) -> None:
        self._index, self._policy = index, policy
        self._held: dict[int, np.ndarray] = {}
        self._bytes = 0
        self._bad: set[int] = set()

    def take(self, numbers: Sequence[int], size: int) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """The readable ones among `numbers`, in order, `size` at a time."""
        for start in range(0, len(numbers), size):
            wanted = [number for number in numbers[start : start + size] if number not in self._bad]
            fresh = self._read([number for number in wanted if number not in self._held])
            found = [number for number in wanted if number not in self._bad]
            if found:
                yield found, [self._held[n] if n in self._held else fresh[n] for n in found]

    def _read(self, numbers: list[int]) -> dict[int, np.ndarray]:
        fresh: dict[int, np.ndarray] = {}
        for batch in batches(self._index, sorted(numbers), self._policy) if numbers else ():
            for line, image in zip(batch.lines, batch.images, strict=True):
                if self._bytes + image.nbytes <= _HELD:
                    self._held[line.number] = image
                    self._bytes += image.nbytes
                else:
                    fresh[line.number] = image
        self._bad |= {number for number in numbers if number not in self._held and number not in fresh}
        return fresh


def crops(images: Sequence[np.ndarray], size: int, scale: tuple[float, float], keys: Sequence[tuple[int, int, int]]) -> Tensor:
    """Random resized crops with flips, normalised: float32 [n, 3, size, size]. keys: (seed, epoch, sample) of each image."""
    rows = []
    for image, key in zip(images, keys, strict=True):
        rng = np.random.default_rng(key)
        left, top, width, height = _box(image.shape[1], image.shape[0], scale, rng)
        box = (left, top, left + width, top + height)
        row = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box), np.float32)
        rows.append(row[:, ::-1] if rng.random() < 0.5 else row)
    pixels = (np.stack(rows) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32))


def _box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width, height of a crop with a share of the area in `scale` and a ratio from 3/4 to 4/3."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side
