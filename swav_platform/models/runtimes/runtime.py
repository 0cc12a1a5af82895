"""What a runtime is: a function from images to features, its precision, and the digest that the precision gives a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

LARGEST = 32  # images in one call of a runtime with fixed batch sizes
PARITY = {"fp32": 0.9999, "bf16": 0.9999, "int8": 0.99}
"""Precision -> smallest cosine to the float32 features of eager torch with which a runtime may be used."""


@dataclass(frozen=True)
class Runtime:
    """An encoder that is ready to run. Not safe for concurrent calls."""

    name: str  # torch, compile, bf16, onnx or int8
    precision: str  # fp32, bf16 or int8
    device: str
    function: Callable[[np.ndarray], np.ndarray]
    variant: str = ""  # distinguishes int8 exports of one model: calibration changes what they compute

    def __call__(self, images: Tensor | np.ndarray) -> np.ndarray:
        """float32 [n, 3, H, W] on the CPU -> features float32 [n, D], not normalised."""
        return self.function(images.cpu().numpy() if isinstance(images, Tensor) else images)


def digest_with(base: str, precision: str, variant: str = "") -> str:
    """The digest of a model at a precision: that of the package for float32, with a suffix for the others."""
    return base if precision == "fp32" else "-".join(filter(None, (base, precision, variant)))


def digest_parts(digest: str) -> tuple[str, str]:
    """The package's digest and the precision in a digest of `digest_with`."""
    base, _, rest = digest.partition("-")
    return base, rest.partition("-")[0] or "fp32"


def buckets(count: int) -> Iterator[slice]:
    """Splits `count` images into batches whose sizes are powers of two up to LARGEST, largest first.

    A runtime that plans memory or compiles for each shape then sees six shapes. Padding would cost up to twice the work.
    """
    start = 0
    while start < count:
        size = min(LARGEST, 1 << (count - start).bit_length() - 1)
        yield slice(start, start + size)
        start += size


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows: [n, D], [n, D] -> float64 [n]. 0 for a row that is zero or not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        found = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-300)
    finite: np.ndarray = np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
    return finite
