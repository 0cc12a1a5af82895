"""The files of a neighbour index beside its set, except for the quantised lists: vectors in the order of lists, and names of samples.

NEIGHBOURS/manifest.json   what it was made from, and how it is searched; written last
           lists.faiss     quantised vectors in inverted lists
           vectors.f16     float16 [n, D] in the order of lists: for exact scores
           place.i64       int64 [n]: the line of each row in vectors.f16
           lists.i32       int32 [n]: the list of each row
           rows.arrow      sample, key, shard, label, cluster, content, width, height of each row, in the order of the set

A row is a number 0 … n-1 of a sample that has an embedding. All files are mapped into memory, not read into it.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa

FORMAT = 1
MANIFEST, LISTS, ROWS = "manifest.json", "lists.faiss", "rows.arrow"
COLUMNS = ("sample", "key", "shard", "label", "cluster", "content", "width", "height")
_TYPES = {
    "sample": pa.int64(),
    "key": pa.string(),
    "shard": pa.string(),
    "label": pa.string(),
    "cluster": pa.int32(),
    "content": pa.uint64(),
    "width": pa.int32(),
    "height": pa.int32(),
}
SCHEMA = pa.schema([(name, _TYPES[name]) for name in COLUMNS])


class StoredVectors:
    """Vectors by row or by line. Pages that were read do not stay in this process."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._lines = np.memmap(folder / "vectors.f16", np.float16, "r").reshape(-1, dim)
        self.place = np.memmap(folder / "place.i64", np.int64, "r")
        self.lists = np.memmap(folder / "lists.i32", np.int32, "r")

    def __len__(self) -> int:
        return len(self.place)

    def rows(self, rows: np.ndarray, *, release: bool = True) -> np.ndarray:
        """float32 [m, D] of unit length of rows int64 [m]. Without `release`, pages stay until it is called."""
        found = unit(self._lines[self.place[rows]])
        if release:
            self.release()
        return found

    def lines(self, first: int, last: int) -> np.ndarray:
        """float32 [last - first, D] of unit length, in the order of lists."""
        return unit(self._lines[first:last])

    def release(self) -> None:
        """Gives the pages back; the system still caches the file."""
        self._lines._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        self.place._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    @property
    def order(self) -> np.ndarray:
        """int64 [n]: the row of each line."""
        found = np.empty(len(self.place), np.int64)
        found[self.place] = np.arange(len(self.place))
        return found


def open_rows(folder: Path) -> pa.Table:
    with pa.memory_map(str(folder / ROWS)) as source:
        return pa.ipc.open_file(source).read_all()


def completed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with all columns of SCHEMA. Sets of earlier versions have no content and sizes."""
    columns = [batch[f.name].cast(f.type) if f.name in batch.schema.names else pa.nulls(len(batch), f.type) for f in SCHEMA]
    return pa.record_batch(columns, schema=SCHEMA)


def unit(values: np.ndarray) -> np.ndarray:
    """float32 with rows of unit length."""
    found: np.ndarray = values.astype(np.float32)
    found /= np.sqrt(np.maximum(np.einsum("...d,...d->...", found, found), 1e-24))[..., None]
    return found
