"""Near-duplicates and outliers of a set, from the files that `swav neighbours` writes into it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.embeddings.explorer.collection import Collection
from swav_platform.errors import UserError

DUPLICATES, OUTLIERS = "duplicates.parquet", "outliers.parquet"


def _read(held: Collection, name: str, columns: list[str]) -> pa.Table | None:
    path = None if held.folder is None else held.folder / name
    if path is None or not path.is_file():
        return None
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} can't be read ({reason}). Run the command that wrote it again.") from error


def groups(held: Collection, limit: int, offset: int, thumbnail: bool) -> dict[str, Any]:
    """A page of groups, largest first."""
    table = _read(held, DUPLICATES, ["group", "sample", "similarity"])
    if table is None:
        return {"computed": False, "total": 0, "limit": limit, "offset": offset, "groups": []}
    group, sample = table["group"].to_numpy(), table["sample"].to_numpy()
    similarity = table["similarity"].to_numpy()
    numbers, sizes = np.unique(group, return_counts=True)
    chosen = numbers[np.argsort(-sizes, kind="stable")][offset : offset + limit]
    made = []
    for number in chosen:
        lines = np.flatnonzero(group == number)
        rows = held.rows(sample[lines])
        shown = [held.item(int(row), None, thumbnail=thumbnail) for row in rows[:48]]
        made.append({"similarity": round(float(similarity[lines].min()), 5), "size": len(lines), "items": shown})
    return {"computed": True, "total": len(numbers), "limit": limit, "offset": offset, "groups": made}


def outliers(held: Collection, limit: int, offset: int, thumbnail: bool) -> dict[str, Any]:
    """A page of outliers."""
    table = _read(held, OUTLIERS, ["sample", "score"])
    if table is None:
        return {"computed": False, "total": 0, "limit": limit, "offset": offset, "items": []}
    part = table.slice(offset, limit).to_pydict()
    scores = dict(zip(part["sample"], part["score"], strict=True))
    rows = held.rows(part["sample"])
    shown = [held.item(int(row), scores[int(held.samples[row])], thumbnail=thumbnail) for row in rows]
    return {"computed": True, "total": table.num_rows, "limit": limit, "offset": offset, "items": shown}
