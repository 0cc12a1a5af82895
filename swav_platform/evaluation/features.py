"""Features of the images of an index, by any function of pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from swav_platform.config import ImagePolicy
from swav_platform.data.index import Index, IndexLine
from swav_platform.data.keyed import key, shuffled
from swav_platform.data.read import ReadFailure, read_samples
from swav_platform.images.decode import Refused, decode
from swav_platform.models.package import preprocess

BATCH = 256


@dataclass(frozen=True)
class Batch:
    """Images that could be decoded, with their lines, and why the others could not."""

    lines: list[IndexLine]
    images: list[np.ndarray]  # uint8 [H, W, 3]
    contents: list[bytes]
    refused: Counter[str]


@dataclass(frozen=True)
class Features:
    """values: float32 [n, D], rows of unit length; labels: one for each row, or None where the index has none."""

    values: np.ndarray
    labels: list[str | None]
    refused: Counter[str]


def subset(index: Index, size: int | None, seed: int) -> list[int]:
    """`size` sample numbers drawn without repetition by `seed` (all of them when size is None), in index order."""
    if size is None or size >= index.samples:
        return list(range(index.samples))
    return sorted(shuffled(key(seed), index.samples)[:size].tolist())


def batches(index: Index, numbers: Sequence[int], policy: ImagePolicy, size: int = BATCH) -> Iterator[Batch]:
    """Decoded images in the order of `numbers`; the next batch is read and decoded while the caller works on one."""
    parts = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(_read, index, parts[0], policy) if parts else None
        for following in [*parts[1:], None]:
            assert pending is not None
            ready = pending.result()
            if following is not None:
                pending = pool.submit(_read, index, following, policy)
            yield ready


def _read(index: Index, numbers: Sequence[int], policy: ImagePolicy) -> Batch:
    batch = Batch([], [], [], Counter())
    lines = index.lines(numbers)
    contents = read_samples(lines, max_bytes=policy.max_bytes)
    for line in lines:
        content = contents[line.number]
        if isinstance(content, ReadFailure):
            batch.refused[content.outcome.word] += 1
            continue
        try:
            image = decode(content, policy)
        except Refused as refused:
            batch.refused[refused.outcome.word] += 1
            continue
        batch.lines.append(line)
        batch.images.append(image)
        batch.contents.append(content)
    return batch


def features(
    index: Index,
    numbers: Sequence[int],
    functions: Mapping[str, Callable[[list[np.ndarray]], np.ndarray]],
    policy: ImagePolicy,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Features]:
    """Unit-length features of the samples `numbers` by each function (images -> float32 [b, D]); each image is read once."""
    values: dict[str, list[np.ndarray]] = {name: [] for name in functions}
    labels: list[str | None] = []
    refused = Counter[str]()
    for batch in batches(index, numbers, policy):
        if batch.images:
            for name, function in functions.items():
                values[name].append(unit(function(batch.images)))
            labels += [line.label for line in batch.lines]
        refused += batch.refused
        progress(len(batch.lines) + batch.refused.total())
    return {
        name: Features(np.concatenate(parts) if parts else np.zeros((0, 1), np.float32), labels, refused)
        for name, parts in values.items()
    }


def encoder_function(encoder: nn.Module, input_size: int) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Features before the head (the encoder's pooled output), float32 [b, D]."""
    encoder.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def function(images: list[np.ndarray]) -> np.ndarray:
        pixels = torch.stack([preprocess(image, input_size) for image in images]).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            return encoder(pixels).float().numpy()

    return function


def colour_histogram(images: list[np.ndarray], bins: int = 8) -> np.ndarray:
    """Square roots of joint RGB histograms, float32 [b, bins³]: what colour alone tells."""
    rows = []
    for image in images:
        code = (image.reshape(-1, 3) // (256 // bins)).astype(np.int64) @ np.array([bins * bins, bins, 1])
        rows.append(np.sqrt(np.bincount(code, minlength=bins**3) / len(code)))
    return np.stack(rows).astype(np.float32)


def unit(values: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.maximum(norms, 1e-12)).astype(np.float32)
