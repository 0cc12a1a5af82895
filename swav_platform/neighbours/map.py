"""A map of a set: two principal components, and the neighbours of each sample, in a table that embedding-atlas opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import replacing
from swav_platform.neighbours.axes import Axes, two_axes
from swav_platform.neighbours.index import NeighbourIndex

_BLOCK = 8192  # vectors at once


def write_map(
    index: NeighbourIndex, path: Path, k: int = 10, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Writes x, y, sample, key, shard, label, cluster and neighbors (`ids`: lines of the table, `distances`: 1 − cosine).

    Excluded samples are left out. Returns samples, the share of the variance that the map shows, and out.
    """
    usable = np.arange(index.samples) if index.banned is None else np.flatnonzero(~index.banned)
    axes, share = _principal(index, usable)
    schema = _SCHEMA.with_metadata(axes.as_metadata())
    line = np.full(index.samples, -1, np.int64)
    line[usable] = np.arange(len(usable))
    allowed = None if index.banned is None else ~index.banned
    with replacing(path) as aside, pq.ParquetWriter(aside, schema) as file:
        for first in range(0, len(usable), _BLOCK):
            rows = usable[first : first + _BLOCK]
            values = index.vectors.rows(rows)
            places = axes.places(values)
            scores, found = index.search_rows(values, min(k + 1, len(usable)), allowed)
            near = [_near(*each, line, k) for each in zip(scores, found, rows, strict=True)]
            names = index.rows.select(_NAMES).take(pa.array(rows))
            columns = [
                pa.array(places[:, 0]),
                pa.array(places[:, 1]),
                *names.columns,
                pa.array(near, _SCHEMA.field("neighbors").type),
            ]
            file.write_table(pa.table(columns, schema=schema))
            progress(first + len(rows), len(usable))
    return {"samples": len(usable), "variance_share": round(share, 4), "out": str(path)}


_NAMES = ["sample", "key", "shard", "label", "cluster"]
_SCHEMA = pa.schema(
    [
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("sample", pa.int64()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("label", pa.string()),
        ("cluster", pa.int32()),
        ("neighbors", pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])),
    ]
)


def _principal(index: NeighbourIndex, rows: np.ndarray) -> tuple[Axes, float]:
    """The main axes and their share of the variance."""
    total, squares = np.zeros(index.dim), np.zeros((index.dim, index.dim))
    for first in range(0, len(rows), _BLOCK):
        values = index.vectors.rows(rows[first : first + _BLOCK])
        total += values.sum(axis=0, dtype=np.float64)
        squares += values.T @ values
    mean = total / max(len(rows), 1)
    directions, share = two_axes(squares / max(len(rows), 1) - np.outer(mean, mean))
    return Axes(mean.astype(np.float32), directions.astype(np.float32)), share


def _near(scores: np.ndarray, rows: np.ndarray, own: int, line: np.ndarray, k: int) -> dict[str, Any]:
    kept = (rows >= 0) & (rows != own)
    return {"ids": line[rows[kept]][:k], "distances": (1 - scores[kept])[:k]}
