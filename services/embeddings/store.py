"""The run's embeddings in memory: samples with vector, cluster and thumbnail, and exact search."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from swav_platform.errors import UserError
from swav_platform.models.inference import InferenceModel, highest

COLUMNS = ("key", "shard", "sample", "cluster", "score", "embedding")
OPTIONAL = ("label", "thumbnail")
CELLS = 16_000_000  # float32 cosines in memory during a search: 64 MB


@dataclass(frozen=True)
class Store:
    """N samples in memory. Only `hidden` and `sizes` change, element by element, so that concurrent reads are safe."""

    table: pa.Table  # all columns except the vectors
    vectors: np.ndarray  # float32 [N, feature_dim], unit length
    clusters: np.ndarray  # int32 [N]
    scores: np.ndarray  # float32 [N]: cosine to the nearest prototype
    sizes: np.ndarray  # int64 [K]: samples of each cluster that are not hidden
    hidden: np.ndarray  # bool [N]: excluded samples, which no answer contains

    @property
    def samples(self) -> int:
        return len(self.clusters) - int(np.count_nonzero(self.hidden))

    def hide(self, rows: np.ndarray, hidden: bool) -> None:
        """Leaves the rows out of all answers, or takes them back."""
        self.hidden[rows] = hidden
        shown = self.clusters[(self.clusters >= 0) & ~self.hidden]
        self.sizes[:] = np.bincount(shown, minlength=len(self.sizes))

    def nearest(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows of the k nearest samples and their cosines, best first, for each unit-length query of [n, feature_dim]."""
        at_once = max(1, CELLS // len(self.clusters))
        parts = [queries[i : i + at_once] for i in range(0, len(queries), at_once)]
        k = min(k, self.samples)
        return [highest(np.where(self.hidden, -2, cosines), k) for part in parts for cosines in part @ self.vectors.T]

    def members(self, cluster: int, limit: int) -> np.ndarray:
        """Rows of the cluster's samples that are nearest to its prototype, best first."""
        rows = np.flatnonzero((self.clusters == cluster) & ~self.hidden)
        order, _ = highest(self.scores[rows], limit)
        return np.asarray(rows[order])

    def rows(self, key: str, shard: str | None) -> np.ndarray:
        """Rows with this key, in `shard` (file name or whole path) if given."""
        found = np.flatnonzero(pc.equal(self.table["key"], key).to_numpy(zero_copy_only=False) & ~self.hidden)
        if shard is None:
            return found
        names = [self.table["shard"][int(row)].as_py() for row in found]
        return np.array(
            [row for row, name in zip(found, names, strict=True) if shard in (name, name.rpartition("/")[2])], np.int64
        )

    def sample(self, row: int, score: float, *, thumbnail: bool = True) -> dict[str, Any]:
        """The row as the routes return it."""
        told = self.table.slice(row, 1).to_pylist()[0]
        image = told.get("thumbnail") if thumbnail else None
        return {
            "key": told["key"],
            "shard": told["shard"],
            "sample": told["sample"],
            "cluster": told["cluster"],
            "score": round(float(score), 7),
            "label": told.get("label"),
            "thumbnail": None if not image else "data:image/jpeg;base64," + base64.b64encode(image).decode("ascii"),
        }


def load_store(folder: Path, model: InferenceModel) -> Store:
    """Loads embeddings.parquet. Raises UserError for a missing or damaged file, and for embeddings of another model."""
    path = folder / "embeddings.parquet"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Run `swav embed RUN --data PATTERN` first, or start the service without embeddings."
        )
    _check_maker(folder, model)
    try:
        table = _read(path)
        vectors = _vectors(table["embedding"])
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} can't be read as embeddings ({reason}). Run `swav embed` again.") from error
    clusters = table["cluster"].to_numpy().astype(np.int32)
    known = len(model.prototypes)
    if vectors.shape[1] != model.feature_dim or clusters.min() < (0 if known else -1) or clusters.max() >= known:
        raise UserError(
            f"{path} has vectors of {vectors.shape[1]} dimensions and clusters up to {clusters.max()}, but the model {model.name} "
            f"has {model.feature_dim} dimensions and {known} clusters. Run `swav embed` again with this model."
        )
    return Store(
        table=table.drop_columns(["embedding"]).combine_chunks(),
        vectors=vectors,
        clusters=clusters,
        scores=np.nan_to_num(table["score"].to_numpy().astype(np.float32), nan=-1.0),
        sizes=np.bincount(clusters[clusters >= 0], minlength=known),
        hidden=np.zeros(len(clusters), bool),
    )


def _read(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        table = file.read(columns=[name for name in COLUMNS + OPTIONAL if name in names])
    if table.num_rows == 0:
        raise ValueError("it has no samples")
    return table


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Unit-length float32 [N, dim] of a column of fixed-size lists."""
    if not pa.types.is_fixed_size_list(column.type) or column.null_count:
        raise ValueError("the column embedding must contain lists of one size, without nulls")
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).astype(np.float32) for chunk in column.chunks]
    vectors = np.concatenate(chunks).reshape(-1, column.type.list_size)
    if not np.isfinite(vectors).all():
        raise ValueError("some vectors are not finite")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def _check_maker(folder: Path, model: InferenceModel) -> None:
    """Raises UserError for vectors of another model: they are not comparable, even if they have the same size."""
    try:
        told = json.loads((folder / "embeddings.json").read_text(encoding="utf-8"))
        maker = told.get("model")
    except (OSError, ValueError, AttributeError):
        return  # the dimensions are still checked
    if maker is not None and not model.made_comparable(str(maker)):
        raise UserError(
            f"The embeddings in {folder} were made by the model {maker}, not by the served model {model.name} "
            f"({model.digest}). Run `swav embed` again with this model."
        )
