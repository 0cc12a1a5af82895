"""Which stored samples meet the conditions of a search."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from swav_platform.data.index.names import is_end_of
from swav_platform.neighbours.search import Where


def masks(rows: pa.Table, where: Where) -> list[np.ndarray]:
    """bool [n] for each condition. rows: columns sample, key, shard, cluster and, optionally, label of n samples."""
    found = []
    if where.cluster is not None:
        found.append(rows["cluster"].to_numpy() == where.cluster)
    if where.label is not None:
        known = "label" in rows.column_names
        found.append(_array(pc.equal(rows["label"], where.label)) if known else np.zeros(len(rows), bool))
    if where.shard is not None:
        names = [name for name in pc.unique(rows["shard"]).to_pylist() if is_end_of(where.shard, name)]
        found.append(_array(pc.is_in(rows["shard"], pa.array(names, pa.string()))))
    if where.key_prefix is not None:
        found.append(_array(pc.starts_with(rows["key"], where.key_prefix)))
    if where.without:
        found.append(~np.isin(rows["sample"].to_numpy(), list(where.without)))
    return found


def _array(mask: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = pc.fill_null(mask, False).to_numpy()
    return found
