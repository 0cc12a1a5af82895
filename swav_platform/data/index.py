"""The index: a parquet line a sample, immutable, named by its digest.

OUT/part-00000.parquet …   lines in the order of shards and, in each, of the tar; row groups of 8,192 lines
OUT/manifest.json          written last: without it there is no index. All that a process holds: O(shards).
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.data.index_writer import write_index
from swav_platform.data.manifest import GROUP, Shard, read_manifest, reusable, shard_files
from swav_platform.data.shard import check_label
from swav_platform.errors import UsageError

_CACHED_GROUPS = 96  # a window's blocks may all lie in different ones
_CACHED_FILES = 16


@dataclass(frozen=True, slots=True)
class IndexLine:
    """Where a sample's image lies: `size` bytes from `offset` of `shard` on."""

    number: int
    key: str
    shard: str
    offset: int
    size: int
    extension: str
    label: str | None


@dataclass(frozen=True)
class IndexReport:
    """`skipped`: what is no sample, by reason. `bytes_read`: of the shards; 0 where the index was there already."""

    samples: int
    shards: int
    digest: str
    skipped: dict[str, int]
    seconds: float
    bytes_read: int
    path: str


def build_index(
    shards: Sequence[str], out: Path, *, label: str | None = None, progress: Callable[[int, int], None] | None = None
) -> IndexReport:
    """Index tars into the folder `out`; takes what is there if it was made of the same unchanged shards.

    label: None, "folder" (the key's directory), "cls" (content of the .cls member) or "json:FIELD".
    progress: called with (shards done, shards). Raises UserError if no shard has a sample or `out` can't be written.
    """
    check_label(label)
    started = time.monotonic()
    out = Path(out)
    known = shard_files(shards)
    manifest, bytes_read = reusable(out, known, label), 0
    if manifest is None:
        manifest, bytes_read = write_index(known, out, label, progress)
    skipped = sum((Counter(shard["problems"]) for shard in manifest["shards"]), Counter())
    seconds = time.monotonic() - started
    return IndexReport(manifest["samples"], len(shards), manifest["digest"], dict(skipped), seconds, bytes_read, str(out))


class Index:
    """Read access to an index: `digest`, `samples` (how many), `shards`, `label`. Safe to send to other processes."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.digest: str = manifest["digest"]
        self.samples: int = manifest["samples"]
        self.label: str | None = manifest["label"]
        self.shards = [Shard(**shard) for shard in manifest["shards"]]
        self._parts = [part["file"] for part in manifest["parts"]]
        self._first = [0, *accumulate(part["samples"] for part in manifest["parts"])]
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.RecordBatch] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Raises UsageError if there is no index at `path`, UserError if it is of another format."""
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            raise UsageError(f"There is no index in {path}: make one with `swav index PATTERN --out {path}`.")
        return cls(path, manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.path,)

    def lines(self, numbers: Sequence[int] | np.ndarray) -> list[IndexLine]:
        """The lines of sample numbers, in the order asked. Raises IndexError for a number outside 0 .. samples-1."""
        wanted = np.asarray(numbers, dtype=np.int64)
        if not len(wanted):
            return []
        if wanted.min() < 0 or wanted.max() >= self.samples:
            raise IndexError(f"samples are numbered 0 .. {self.samples - 1}, got {wanted.min()} .. {wanted.max()}")
        order = np.argsort(wanted, kind="stable")
        table = pa.Table.from_batches(list(self._take(wanted[order])))
        found: list[IndexLine] = [None] * len(wanted)  # type: ignore[list-item]
        columns = [table[name].to_pylist() for name in ("shard", "key", "offset", "size", "extension", "label")]
        for place, shard, key, offset, size, extension, label in zip(order.tolist(), *columns, strict=True):
            found[place] = IndexLine(int(wanted[place]), key, self.shards[shard].url, offset, size, extension, label)
        return found

    def _take(self, ascending: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Lines of ascending numbers, a batch a row group."""
        parts = np.searchsorted(self._first, ascending, side="right") - 1
        inside = ascending - np.asarray(self._first)[parts]
        groups = inside // GROUP
        cuts = np.flatnonzero(np.diff(parts) | np.diff(groups)) + 1
        for places in np.split(np.arange(len(ascending)), cuts):
            first = places[0]
            batch = self._group(int(parts[first]), int(groups[first]))
            yield batch.take(pa.array(inside[places] - groups[first] * GROUP))

    def _group(self, part: int, group: int) -> pa.RecordBatch:
        if (batch := self._groups.get((part, group))) is None:
            batch = self._file(part).read_row_group(group).combine_chunks().to_batches()[0]
            self._groups[part, group] = batch
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((part, group))
        return batch

    def _file(self, part: int) -> pq.ParquetFile:
        if (file := self._files.get(part)) is None:
            file = self._files[part] = pq.ParquetFile(self.path / self._parts[part])
            if len(self._files) > _CACHED_FILES:
                self._files.popitem(last=False)[1].close()
        return file
