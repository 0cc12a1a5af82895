"""The run's embeddings: samples with vector, cluster and thumbnail; exact search."""

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

from services.embeddings.models import ServedModel
from swav_platform.errors import UserError

COLUMNS = ("key", "shard", "sample", "cluster", "score", "embedding")
OPTIONAL = ("label", "thumbnail")
CELLS = 16_000_000  # float32 cosines held at one time by a search: 64 MB


@dataclass(frozen=True)
class Store:
    """N samples in memory. Immutable, so any thread may ask."""

    table: pa.Table  # all columns but the vectors
    vectors: np.ndarray  # float32 [N, feature_dim], unit length
    clusters: np.ndarray  # int32 [N]
    scores: np.ndarray  # float32 [N]: cosine to the sample's own prototype
    sizes: np.ndarray  # int64 [K]

    @property
    def samples(self) -> int:
        return len(self.clusters)

    def nearest(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each of the unit-length queries [n, feature_dim]: rows of the k nearest samples and their cosines, best first."""
        at_once = max(1, CELLS // self.samples)
        parts = [queries[i : i + at_once] for i in range(0, len(queries), at_once)]
        return [best(cosines, k) for part in parts for cosines in part @ self.vectors.T]

    def members(self, cluster: int, limit: int) -> np.ndarray:
        """Rows of the cluster's samples nearest to its prototype, best first."""
        rows = np.flatnonzero(self.clusters == cluster)
        order, _ = best(self.scores[rows], limit)
        return rows[order]

    def rows(self, key: str, shard: str | None) -> np.ndarray:
        """Rows with this key, of this shard (name or whole path) where one is given."""
        found = np.flatnonzero(pc.equal(self.table["key"], key).to_numpy(zero_copy_only=False))
        if shard is None:
            return found
        names = [self.table["shard"][int(row)].as_py() for row in found]
        return found[[shard in (name, name.rpartition("/")[2]) for name in names]]

    def sample(self, row: int, score: float, *, thumbnail: bool = True) -> dict[str, Any]:
        """The row as the routes answer it."""
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


def best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the k highest scores, best first (ties: lowest place first), and those scores."""
    k = min(k, len(scores))
    if k == 0:
        return np.empty(0, np.int64), scores[:0]
    bar = np.partition(scores, len(scores) - k)[len(scores) - k]
    places = np.flatnonzero(scores >= bar)
    places = places[np.argsort(-scores[places], kind="stable")][:k]
    return places, scores[places]


def load_store(folder: Path, model: ServedModel) -> Store:
    """Raises UserError for a missing or damaged file, and for embeddings that another model made."""
    path = folder / "embeddings.parquet"
    if not path.is_file():
        raise UserError(
            f"There is no {path}: run `swav embed RUN --data PATTERN` first, or start the service without embeddings."
        )
    _check_maker(folder, model)
    try:
        table = _read(path)
        vectors = _vectors(table["embedding"])
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} can't be read as embeddings ({reason}): run `swav embed` again.") from error
    clusters = table["cluster"].to_numpy().astype(np.int32)
    known = len(model.prototypes)
    if vectors.shape[1] != model.feature_dim or clusters.min() < (0 if known else -1) or clusters.max() >= known:
        raise UserError(
            f"{path} holds vectors of {vectors.shape[1]} dimensions in clusters up to {clusters.max()}, but the model "
            f"{model.name} makes {model.feature_dim} dimensions and {known} clusters: run `swav embed` again with this model."
        )
    return Store(
        table=table.drop_columns(["embedding"]).combine_chunks(),
        vectors=vectors,
        clusters=clusters,
        scores=np.nan_to_num(table["score"].to_numpy().astype(np.float32), nan=-1.0),
        sizes=np.bincount(clusters[clusters >= 0], minlength=known),
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
        raise ValueError("the column embedding must hold lists of one size, without nulls")
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).astype(np.float32) for chunk in column.chunks]
    vectors = np.concatenate(chunks).reshape(-1, column.type.list_size)
    if not np.isfinite(vectors).all():
        raise ValueError("some vectors are not finite")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def _check_maker(folder: Path, model: ServedModel) -> None:
    """Vectors of another model can't be compared with this one's, even if they have its size."""
    try:
        told = json.loads((folder / "embeddings.json").read_text(encoding="utf-8"))
        maker = told.get("model")
    except (OSError, ValueError, AttributeError):
        return  # the dimensions are still checked
    if maker is not None and maker != model.digest:
        raise UserError(
            f"The embeddings in {folder} were made by the model {maker}, not by {model.name} ({model.digest}) that is to be "
            f"served: run `swav embed` again with this model."
        )
