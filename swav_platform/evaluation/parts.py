"""Makes one part of an embedding set: reads, decodes and encodes the samples of a range of the index."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from PIL import Image
from torch import Tensor

from swav_platform.config import ImagePolicy
from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.outages import Outages
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.data.sets.layout import OK, THUMBNAILS, PartReport, Recipe, schema
from swav_platform.data.sets.write import put_part
from swav_platform.data.storage.copies import local_copy_of_folder
from swav_platform.evaluation.features import read_together, unit
from swav_platform.failures import LogWaits, Tell
from swav_platform.images.decoding.decode import decode
from swav_platform.images.decoding.refused import Refused
from swav_platform.models.inference import InferenceModel, load_for_inference
from swav_platform.models.package import preprocess
from swav_platform.runs.storage import is_url, storage_of

BATCH = 64
"""Samples of a forward pass. All machines make a part from the same batches, and so with the same bytes."""

SIDE = 96
"""Pixels of a thumbnail's longer side, at most."""


@dataclass(frozen=True)
class EmbedJob:
    """All that a machine must know to make parts. Picklable.

    package (of the model), index, target: folders or URLs that every machine sees. patience: seconds to wait for a storage.
    runtime: of models/runtimes; auto for the usual one with float32.
    """

    package: str
    index: str
    target: str
    recipe: Recipe
    policy: ImagePolicy
    patience: float = 1800.0
    runtime: str = "auto"


@dataclass(frozen=True)
class Prepared:
    """A sample before it is encoded. pixels: float32 [3, size, size], None for a bad image."""

    outcome: str
    pixels: Tensor | None = None
    content: int = 0
    width: int = 0
    height: int = 0
    thumbnail: bytes | None = None


class PartMaker:
    """Makes parts with one loaded model. threads: for decoding. runtime_threads: of the encoder; None for its own choice."""

    def __init__(self, job: EmbedJob, *, device: str = "cpu", threads: int = 1, runtime_threads: int | None = None) -> None:
        self.job, self._index = job, Index.open(job.index)
        runtime = usual_runtime(job.recipe.transform["size"], device) if job.runtime == "auto" else job.runtime
        self._model = load_for_inference(on_this_machine(job.package), runtime, device=device, threads=runtime_threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="read")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._ahead.shutdown(cancel_futures=True)

    def make(self, number: int, done: Callable[[int], None] = lambda samples: None, tell: Tell | None = None) -> PartReport:
        """Makes and stores a part. done(n): n more samples are encoded. Raises MachineFault for a storage that fails for long."""
        tell = tell or LogWaits()
        lines, prepared, values = list[IndexLine](), list[Prepared](), list[np.ndarray]()
        batches = self._prepared(self.job.recipe.parts[number], tell)
        pending = self._ahead.submit(next, batches, None)
        while (ready := pending.result()) is not None:
            pending = self._ahead.submit(next, batches, None)
            lines += [line for line, _ in ready]
            prepared += [sample for _, sample in ready]
            pixels = [sample.pixels for _, sample in ready if sample.pixels is not None]
            if pixels:
                values.append(self._encoded(torch.stack(pixels)))
            prepared[-len(ready) :] = [_without_pixels(sample) for _, sample in ready]
            done(len(ready))
        table = part_table(self.job.recipe, lines, prepared, *self._outputs(values))
        return put_part(storage_of(self.job.target), number, table, self._thumbnails(lines, prepared), self.job.patience, tell)

    def _prepared(self, numbers: range, tell: Tell) -> Iterator[list[tuple[IndexLine, Prepared]]]:
        outages = Outages(self.job.patience, tell=tell, index=self._index)
        for start in range(0, len(numbers), BATCH):
            found: list[tuple[IndexLine, Prepared]] = []
            for lines in read_together(self._index.lines(numbers[start : start + BATCH])):
                contents = read_samples(lines, max_bytes=self.job.policy.max_bytes, outages=outages)
                found += zip(lines, self._pool.map(self._prepare, [contents[line.number] for line in lines]), strict=True)
            yield found

    def _prepare(self, content: bytes | ReadFailure) -> Prepared:
        if isinstance(content, ReadFailure):
            return Prepared(content.outcome.word)
        hashed = xxhash.xxh3_64_intdigest(content)
        try:
            image = decode(content, self.job.policy)
        except Refused as refused:
            return Prepared(refused.outcome.word, content=hashed)
        height, width, _ = image.shape
        small = small_jpeg(image) if self.job.recipe.thumbnails else None
        return Prepared(OK, preprocess(image, self._model.input_size), hashed, width, height, small)

    def _encoded(self, pixels: Tensor) -> np.ndarray:
        """float32 [n, D + P + 2]: embedding, then cluster and score."""
        encoded = self._model.encode(pixels)
        embedding = encoded.features if self.job.recipe.space == "backbone" else encoded.projections
        return np.concatenate([embedding, *nearest_prototype(self._model, encoded.projections)], axis=1, dtype=np.float32)

    def _outputs(self, values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        dim = self.job.recipe.dim
        joined = np.concatenate([np.zeros((0, dim + 2), np.float32), *values])
        return joined[:, :dim], joined[:, dim].astype(np.int32), joined[:, dim + 1]

    def _thumbnails(self, lines: Sequence[IndexLine], prepared: Sequence[Prepared]) -> pa.Table | None:
        if not self.job.recipe.thumbnails:
            return None
        rows = [(line.number, sample.thumbnail) for line, sample in zip(lines, prepared, strict=True) if sample.thumbnail]
        numbers, pictures = zip(*rows, strict=True) if rows else ((), ())
        return pa.table([pa.array(numbers, pa.int64()), pa.array(pictures, pa.binary())], schema=THUMBNAILS)


def usual_runtime(size: int, device: str) -> str:
    """ONNX Runtime on CPUs, except for small images, which decoding takes longer for than encoding; torch on GPUs."""
    return "onnx" if device == "cpu" and size > 64 else "torch"


def on_this_machine(package: str) -> Path:
    """The folder of a model package, which is downloaded if it is in an object store."""
    return local_copy_of_folder(package) if is_url(package) else Path(package)


def nearest_prototype(model: InferenceModel, projections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number [n, 1] of the nearest prototype and its cosine [n, 1], float32; -1 and 0 without prototypes.

    A float32 holds numbers up to 16 million exactly.
    """
    if not len(model.prototypes):
        return np.full((len(projections), 1), -1, np.float32), np.zeros((len(projections), 1), np.float32)
    scores = model.scores(projections)
    best = scores.argmax(axis=1)[:, None]
    return best.astype(np.float32), np.take_along_axis(scores, best, axis=1)


def part_table(
    recipe: Recipe,
    lines: Sequence[IndexLine],
    prepared: Sequence[Prepared],
    embeddings: np.ndarray,
    clusters: np.ndarray,
    scores: np.ndarray,
) -> pa.Table:
    """embeddings [m, dim], clusters [m], scores [m]: of the m samples with outcome ok, in order."""
    good = np.array([sample.outcome == OK for sample in prepared], bool)
    vectors, cluster, score = np.zeros((len(good), recipe.dim), np.float32), np.full(len(good), -1, np.int32), np.zeros(len(good))
    vectors[good], cluster[good], score[good] = unit(embeddings), clusters, scores
    columns: dict[str, Any] = {
        "sample": [line.number for line in lines],
        "key": [line.key for line in lines],
        "shard": [line.name for line in lines],
        "label": [line.label for line in lines],
        "cluster": cluster,
        "score": score.astype(np.float32),
        "outcome": [sample.outcome for sample in prepared],
        "content": [sample.content for sample in prepared],
        "width": [sample.width for sample in prepared],
        "height": [sample.height for sample in prepared],
    }
    if recipe.dtype == "int8":
        columns["scale"] = np.maximum(np.abs(vectors).max(axis=1), 1e-12).astype(np.float32) / 127
        stored = np.rint(vectors / columns["scale"][:, None]).astype(np.int8)
    else:
        stored = vectors.astype(np.float16)
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), recipe.dim)
    wanted = schema(recipe)
    return pa.table([pa.array(columns[field.name], field.type) for field in wanted], schema=wanted)


def small_jpeg(pixels: np.ndarray) -> bytes:
    """A thumbnail of decoded pixels uint8 [H, W, 3]. It has no EXIF data, because it is not made from the file."""
    image, out = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    image.save(out, "JPEG", quality=75)
    return out.getvalue()


def _without_pixels(sample: Prepared) -> Prepared:
    return Prepared(sample.outcome, None, sample.content, sample.width, sample.height, sample.thumbnail)
