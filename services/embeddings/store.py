"""The run's embeddings: samples with cluster and thumbnail, their vectors in memory or in a neighbour index, and search."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from services.embeddings.search.indexed import Found, Searched, open_searched
from services.embeddings.search.items import Items, open_items
from swav_platform.data.sets.excluded import excluded_now
from swav_platform.data.sets.read import EmbeddingSet, open_set, unit_vectors
from swav_platform.errors import UsageError, UserError
from swav_platform.models.inference import InferenceModel, highest
from swav_platform.neighbours.conditions import masks
from swav_platform.neighbours.search import ANY, Where

COLUMNS = ("key", "shard", "sample", "cluster", "score", "embedding")
OPTIONAL = ("label", "thumbnail", "scale")
CELLS = 16_000_000  # float32 cosines in memory during a search: 64 MB


@dataclass(frozen=True)
class Store:
    """N samples in memory. Only `hidden` and `sizes` change, element by element, so that concurrent reads are safe."""

    table: pa.Table  # all columns except the vectors
    vectors: np.ndarray | None  # float32 [N, feature_dim], unit length; None: they are in the index
    clusters: np.ndarray  # int32 [N]
    scores: np.ndarray  # float32 [N]: cosine to the nearest prototype
    sizes: np.ndarray  # int64 [K]: samples of each cluster that are not hidden
    hidden: np.ndarray  # bool [N]: excluded samples, which no answer contains
    gone: np.ndarray  # bool [N]: samples that stay hidden: deleted ones, and those that the index does not have
    items: Items  # that were added to the set
    index: Searched | None = None

    @property
    def samples(self) -> int:
        """Stored samples and items that answers may contain."""
        return len(self.clusters) - int(np.count_nonzero(self.hidden)) + len(self.items.shown())

    def hide(self, rows: np.ndarray, hidden: bool) -> None:
        """Leaves the rows out of all answers, or takes them back."""
        self.hidden[rows] = hidden
        self.hidden[self.gone] = True
        shown = self.clusters[(self.clusters >= 0) & ~self.hidden]
        self.sizes[:] = np.bincount(shown, minlength=len(self.sizes))

    def lose(self, row: int) -> None:
        """Hides a row for good."""
        self.gone[row] = True
        self.hide(np.array([row]), True)

    def vector(self, row: int) -> np.ndarray:
        """float32 [feature_dim] of a row that is not hidden."""
        found: np.ndarray = self.vectors_of(np.array([row]))[0]
        return found

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """float32 [m, feature_dim] of rows that the index has, if there is one."""
        return self.vectors[rows] if self.vectors is not None else self._searched.vectors(rows)

    def with_vectors(self) -> np.ndarray:
        """int64 [m]: the rows that have a vector."""
        return np.arange(len(self.clusters)) if self.index is None else np.flatnonzero(self.index.has)

    @property
    def _searched(self) -> Searched:
        assert self.index is not None
        return self.index

    def nearest(self, queries: np.ndarray, k: int, where: Where = ANY) -> Found:
        """The k nearest samples that are not hidden and meet the conditions, for each unit-length query of [n, feature_dim]."""
        if self.vectors is None:
            return self._searched.nearest(queries, k, where, self.hidden)
        shown = np.logical_and.reduce([~self.hidden, *masks(self.table, where)])
        k = min(k, int(np.count_nonzero(shown)))
        at_once = max(1, CELLS // len(self.clusters))
        parts = [queries[i : i + at_once] for i in range(0, len(queries), at_once)]
        whole = bool(shown.all())
        found = (cosines for part in parts for cosines in part @ self.vectors.T)
        return [highest(cosines if whole else np.where(shown, cosines, -2), k) for cosines in found]

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

    def row_of(self, sample: int) -> int | None:
        """The row of a sample that is not deleted; None if there is none."""
        samples = self.table["sample"].to_numpy()
        row = int(np.searchsorted(samples, sample))
        return row if row < len(samples) and samples[row] == sample and not self.gone[row] else None

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


def load_store(folder: Path, model: InferenceModel, index: Path | str | None = None) -> Store:
    """Loads an embedding set, the items that were added to it, and its neighbour index: `index`, else SET-neighbours if it is there.

    Raises UserError for a missing or damaged set or index, and for embeddings of another model or an index of another set.
    """
    try:
        embeddings = open_set(folder)
    except UsageError as error:
        raise UserError(f"{error} Or start the service without embeddings.") from error
    _check_maker(embeddings, folder, model)
    opened = open_searched(folder, embeddings, index)
    try:
        table, vectors = _read(embeddings, opened is None)
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} can't be read as embeddings ({reason}). Run `swav embed` again.") from error
    clusters = table["cluster"].to_numpy().astype(np.int32)
    known = len(model.prototypes)
    if embeddings.dim != model.feature_dim or clusters.min() < (0 if known else -1) or clusters.max() >= known:
        raise UserError(
            f"{folder} has vectors of {embeddings.dim} dimensions and clusters up to {clusters.max()}, but the model {model.name} "
            f"has {model.feature_dim} dimensions and {known} clusters. Run `swav embed` again with this model."
        )
    samples = table["sample"].to_numpy()
    first = max(int(embeddings.manifest["samples"]), int(samples.max()) + 1)  # excluded samples keep their numbers
    items = open_items(folder, embeddings.digest, first, embeddings.dim)
    gone = np.isin(samples, list(items.deleted))
    indexed = None if opened is None else opened(samples)
    if indexed is not None:
        gone |= ~indexed.has
    store = Store(
        table=table.drop_columns([name for name in ("embedding", "scale") if name in table.column_names]).combine_chunks(),
        vectors=vectors,
        clusters=clusters,
        scores=np.nan_to_num(table["score"].to_numpy().astype(np.float32), nan=-1.0),
        sizes=np.bincount(clusters[clusters >= 0], minlength=known),
        hidden=np.zeros(len(clusters), bool),
        gone=gone,
        items=items,
        index=indexed,
    )
    store.hide(np.flatnonzero(gone), True)
    return store


def _read(embeddings: EmbeddingSet, with_vectors: bool) -> tuple[pa.Table, np.ndarray | None]:
    """All samples that have an embedding and are not excluded, with thumbnails if there are any, and their vectors float32 [N, dim] if asked for."""
    wanted = [name for name in COLUMNS + OPTIONAL if with_vectors or name not in ("embedding", "scale")]
    lines = embeddings.lines(wanted, excluded_now(embeddings.place))
    batches = [batch for batch in lines if batch.num_rows]
    if not batches:
        raise ValueError("it has no samples")
    missing = [name for name in COLUMNS if name in wanted and name not in batches[0].schema.names]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}")
    vectors = np.concatenate([unit_vectors(batch) for batch in batches]) if with_vectors else None
    table = pa.Table.from_batches(batches)
    if "thumbnail" not in table.column_names:
        pictures = embeddings.pictures(table["sample"].to_pylist())
        column = [pictures.get(number) for number in table["sample"].to_pylist()]
        table = table.append_column("thumbnail", pa.array(column, pa.binary()))
    return table, vectors


def _check_maker(embeddings: EmbeddingSet, folder: Path, model: InferenceModel) -> None:
    """Raises UserError for vectors of another model or space: they are not comparable, even if they have the same size."""
    if embeddings.model is not None and not model.made_comparable(embeddings.model):
        raise UserError(
            f"The embeddings in {folder} were made by the model {embeddings.model}, not by the served model {model.name} "
            f"({model.digest}). Run `swav embed` again with this model."
        )
    if embeddings.space != "backbone":
        raise UserError(
            f"The embeddings in {folder} are of the space `{embeddings.space}`, and the service compares the encoder's output. "
            f"Run `swav embed` with --space backbone."
        )
