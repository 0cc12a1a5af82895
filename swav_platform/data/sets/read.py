"""Reads embedding sets, and the single file of earlier versions, as one thing."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.sets.layout import MANIFEST, OK, Recipe
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.storage import Place, Storage, join, storage_of

OLD = "embeddings.parquet"
_BATCH = 8192  # lines
_SIZES = "the column embedding must contain lists of one size, without nulls"


@dataclass(frozen=True)
class EmbeddingSet:
    """A complete set. `lines` gives its samples in order; those without an embedding and excluded ones are left out.

    place: folder or URL. digest: of the manifest. model: digest of the model, None if unknown.
    """

    place: Place
    digest: str
    model: str | None
    space: str
    dim: int
    manifest: dict[str, Any]

    @property
    def storage(self) -> Storage:
        return storage_of(self.place)

    def lines(self, columns: Sequence[str], excluded: Exclusions | None = None) -> Iterator[pa.RecordBatch]:
        """Batches with these columns of the samples that have an embedding."""
        excluded = excluded if excluded is not None and len(excluded) else None
        needed = dict.fromkeys([*columns, "outcome", *(["shard", "key"] if excluded else [])])
        for name in self.files:
            with self._open(name) as file:
                known = [column for column in needed if column in file.schema_arrow.names]
                for batch in file.iter_batches(_BATCH, columns=known):
                    yield _usable(batch, excluded).select([name for name in columns if name in known])

    def vectors(self, excluded: Exclusions | None = None) -> Iterator[np.ndarray]:
        """The same samples: float32 [n, dim] of unit length."""
        for batch in self.lines(["embedding", "scale"], excluded):
            yield unit_vectors(batch)

    @property
    def files(self) -> list[str]:
        return [part["file"] for part in self.manifest["parts"]]

    def thumbnails(self) -> Iterator[pa.RecordBatch]:
        """Columns sample and thumbnail, in the order of the index; nothing if the set has none."""
        if self.files == [OLD]:
            with self._open(OLD) as file:
                if "thumbnail" in file.schema_arrow.names:
                    yield from file.iter_batches(_BATCH, columns=["sample", "thumbnail"])
            return
        for part in self.manifest["parts"]:
            if part["thumbnails"]:
                with self._open(part["thumbnails"]["file"]) as file:
                    yield from file.iter_batches(_BATCH)

    def pictures(self, samples: Collection[int]) -> dict[int, bytes]:
        """Thumbnails (JPEG) of these samples, of those that have one."""
        wanted, found = set(samples), dict[int, bytes]()
        for batch in self.thumbnails() if wanted else ():
            for number, picture in zip(batch["sample"].to_pylist(), batch["thumbnail"], strict=True):
                if number in wanted and picture.is_valid:
                    found[number] = picture.as_py()
        return found

    def _open(self, name: str) -> pq.ParquetFile:
        try:
            if isinstance(self.place, Path):
                return pq.ParquetFile(self.place / name)
            return pq.ParquetFile(io.BytesIO(self.storage.get(name)))
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{join(self.place, name)} can't be read as embeddings ({reason}). Run `swav embed` again."
            ) from error


def open_set(place: Place) -> EmbeddingSet:
    """Opens a complete set. Raises UsageError if there is none, and UserError if it is incomplete or damaged."""
    storage = storage_of(place)
    if (found := storage.look(MANIFEST)) is not None:
        return _of_manifest(storage.place, found.data)
    if isinstance(place, Path) and (place / OLD).is_file():
        return _of_old(place)
    if any(name.startswith("part-") for name in storage.entries()):
        raise UserError(
            f"The embedding set in {place} is incomplete. Run the same `swav embed` again; it goes on where it stopped."
        )
    raise UsageError(f"There are no embeddings in {place}. Run `swav embed RUN --data PATTERN` first.")


def has_set(place: Place) -> bool:
    """Whether a complete set, or the file of an earlier version, is at a place."""
    return storage_of(place).look(MANIFEST) is not None or (isinstance(place, Path) and (place / OLD).is_file())


def _of_manifest(place: Place, data: bytes) -> EmbeddingSet:
    try:
        manifest = json.loads(data)
        recipe = Recipe.read(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{join(place, MANIFEST)} is not the manifest of an embedding set ({error}). Run `swav embed` again."
        ) from error
    return EmbeddingSet(place, _digest(data), recipe.model, recipe.space, recipe.dim, manifest)


def _of_old(place: Path) -> EmbeddingSet:
    """The file of an earlier version as a set of one part, in the space of the backbone."""
    try:
        told = json.loads((place / "embeddings.json").read_bytes())
    except (OSError, ValueError):
        told = {}
    told = told if isinstance(told, dict) else {}
    try:
        with pq.ParquetFile(place / OLD) as file:
            kind, rows = file.schema_arrow.field("embedding").type, file.metadata.num_rows
            if not pa.types.is_fixed_size_list(kind):
                raise ValueError(_SIZES)
            data = repr(file.metadata.to_dict()).encode()
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{place / OLD} can't be read as embeddings ({reason}). Run `swav embed` again.") from error
    manifest = {**told, "samples": rows, "embedded": rows, "parts": [{"file": OLD, "rows": rows, "thumbnails": None}]}
    return EmbeddingSet(place, _digest(data), told.get("model"), "backbone", kind.list_size, manifest)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _usable(batch: pa.RecordBatch, excluded: Exclusions | None) -> pa.RecordBatch:
    if "outcome" in batch.schema.names:
        kept = np.array([word == OK for word in batch["outcome"].to_pylist()], bool)
        batch = batch if kept.all() else batch.filter(pa.array(kept))
    if excluded is None:
        return batch
    names = zip(batch["shard"].to_pylist(), batch["key"].to_pylist(), strict=True)
    return batch.filter(pa.array([not excluded.may_cover(shard, key) for shard, key in names], pa.bool_()))


def unit_vectors(batch: pa.RecordBatch) -> np.ndarray:
    """float32 [n, dim] of unit length from the columns embedding and, for int8, scale. Raises ValueError for values that are not finite."""
    column = batch["embedding"]
    if not pa.types.is_fixed_size_list(column.type) or column.null_count:
        raise ValueError(_SIZES)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    values: np.ndarray = flat.astype(np.float32).reshape(-1, column.type.list_size)
    if "scale" in batch.schema.names:
        values *= batch["scale"].to_numpy()[:, None]
    if not np.isfinite(values).all():
        raise ValueError("some vectors are not finite")
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return values
