"""Reads and decodes the images of an index in batches and computes features from their pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from swav_platform.config import ImagePolicy
from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.order.permutation import key, shuffled
from swav_platform.data.outages import Outages
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.images.decoding.decode import decode
from swav_platform.images.decoding.refused import Refused
from swav_platform.models.package import preprocess

BATCH = 256  # images
BATCH_BYTES = 256 * 2**20  # decoded images and their files
READ_BYTES = 32 * 2**20  # files read at once


@dataclass(frozen=True)
class Batch:
    """Decoded images with their index lines, and the number of refused images by reason."""

    lines: list[IndexLine]
    images: list[np.ndarray]  # uint8 [H, W, 3]
    contents: list[bytes]
    refused: Counter[str]


@dataclass(frozen=True)
class Features:
    """Features of the readable images of a selection."""

    values: np.ndarray  # float32 [n, D], rows of unit length
    labels: list[str | None]  # [n]; None for a sample without a label
    refused: Counter[str]  # images that could not be read, by reason


def subset(index: Index, size: int | None, seed: int) -> list[int]:
    """`size` sample numbers, drawn by `seed` without repetition, in index order. All of them if size is None."""
    if size is None or size >= index.samples:
        return list(range(index.samples))
    return sorted(shuffled(key(seed), index.samples)[:size].tolist())


def batches(index: Index, numbers: Sequence[int], policy: ImagePolicy, size: int = BATCH) -> Iterator[Batch]:
    """Yields decoded images in the order of `numbers`. A thread prepares the next batch while the caller uses the current one.

    A batch ends at `size` images or BATCH_BYTES, whichever comes first.
    """
    found = _batches(index, numbers, policy, size)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, found, None)
        while (ready := pending.result()) is not None:
            pending = pool.submit(next, found, None)
            yield ready


def _batches(index: Index, numbers: Sequence[int], policy: ImagePolicy, size: int) -> Iterator[Batch]:
    batch, held = Batch([], [], [], Counter()), 0
    for line, content in _contents(index, numbers, policy):
        try:
            if isinstance(content, ReadFailure):
                raise Refused(content.outcome, content.detail)
            image = decode(content, policy)
        except Refused as refused:
            batch.refused[refused.outcome.word] += 1
        else:
            batch.lines.append(line)
            batch.images.append(image)
            batch.contents.append(content)
            held += image.nbytes + len(content)
        if held >= BATCH_BYTES or len(batch.lines) + batch.refused.total() >= size:
            yield batch
            batch, held = Batch([], [], [], Counter()), 0
    if batch.lines or batch.refused:
        yield batch


def _contents(index: Index, numbers: Sequence[int], policy: ImagePolicy) -> Iterator[tuple[IndexLine, bytes | ReadFailure]]:
    for start in range(0, len(numbers), BATCH):
        for lines in read_together(index.lines(numbers[start : start + BATCH])):
            contents = read_samples(lines, max_bytes=policy.max_bytes, outages=Outages(index=index))
            yield from ((line, contents[line.number]) for line in lines)


def read_together(lines: Sequence[IndexLine]) -> Iterator[list[IndexLine]]:
    """Splits `lines` into parts of at most READ_BYTES; a larger file is a part of its own."""
    part: list[IndexLine] = []
    size = 0
    for line in lines:
        if part and size + line.size > READ_BYTES:
            yield part
            part, size = [], 0
        part.append(line)
        size += line.size
    if part:
        yield part


def features(
    index: Index,
    numbers: Sequence[int],
    functions: Mapping[str, Callable[[list[np.ndarray]], np.ndarray]],
    policy: ImagePolicy,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Features]:
    """Unit-length features of the samples `numbers` by each function (images -> float32 [b, D]). Each image is decoded once."""
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
    """A function from images to the encoder's pooled output, before the projection head: float32 [b, D]."""
    encoder.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def function(images: list[np.ndarray]) -> np.ndarray:
        pixels = torch.stack([preprocess(image, input_size) for image in images]).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            values: np.ndarray = encoder(pixels).float().numpy()
            return values

    return function


def colour_histogram(images: list[np.ndarray], bins: int = 8) -> np.ndarray:
    """Square roots of joint RGB histograms, float32 [b, bins³]: a baseline that uses colour alone."""
    rows = []
    for image in images:
        code = (image.reshape(-1, 3) // (256 // bins)).astype(np.int64) @ np.array([bins * bins, bins, 1])
        rows.append(np.sqrt(np.bincount(code, minlength=bins**3) / len(code)))
    return np.stack(rows).astype(np.float32)


def unit(values: np.ndarray) -> np.ndarray:
    """`values` [n, D] with rows scaled to unit length, float32."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    scaled: np.ndarray = (values / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled
