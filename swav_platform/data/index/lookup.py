"""Reads an index: immutable Parquet files with one line per sample, identified by a digest.

OUT/manifest.json            points to the current version; written last: without it there is no index
OUT/version-…/               a version; never changes, so a run that started with it can resume with it
    manifest.json            copy of OUT/manifest.json as of this version
    _shards.parquet          one line per shard; the only part that a process keeps in memory, O(shards)
    part-00000.parquet …     one line per sample, in the order of shards and of members in each tar; row groups of 8,192 lines
OUT/_excluded.parquet        the exclusion list, if any
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.data.index.exclusions import Excluded, Exclusions
from swav_platform.data.index.manifest import GROUP, SHARDS, ShardTable, read_manifest, renumbered, version_folder
from swav_platform.data.index.shard import SCHEMA
from swav_platform.data.storage.copies import local_copy_of_folder
from swav_platform.data.storage.objects import is_remote
from swav_platform.errors import UsageError, UserError

_CACHED_GROUPS = 96  # each block of a window may be in a different group
_CACHED_FILES = 16


@dataclass(frozen=True, slots=True)
class IndexLine:
    """The location of a sample's image: `size` bytes at `offset` of `shard`."""

    number: int
    key: str
    shard: str
    offset: int
    size: int
    extension: str
    label: str | None
    version: str = ""  # of the shard; a remote shard with another version is not read
    whole: bool = False  # the shard can't be read by ranges; `offset` refers to its unpacked content
    excluded: bool = False  # added to the exclusion list after this version was built
    name: str = ""  # of the shard: the shortest end of its path that is unique in the index
    shard_size: int = -1
    probe: bytes | None = None  # a hash of some bytes of the shard


class Index:
    """Read access to an index: `digest`, `samples` (their number), `shards`, `label`, `members`. Can be pickled.

    path: the folder of the version. place: the same, or the URL that it was copied from.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], place: str | None = None) -> None:
        self.path, self.manifest, self.place = path, manifest, place or str(path)
        self.digest: str = manifest["digest"]
        self.samples: int = manifest["samples"]
        self.label: str | None = manifest["label"]
        self.members = tuple(manifest.get("members", ()))
        self.shards = ShardTable.read(path / SHARDS)
        self.excluded = Exclusions.of_index(path.parent)
        self._parts = manifest["parts"]
        self._first = np.concatenate([[0], np.cumsum([part["samples"] for part in manifest["parts"]], dtype=np.int64)])
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.RecordBatch] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Opens the current version of the index in a folder, or one version by its own folder (`Index.place`).

        An index at an s3:// or gs:// URL is copied to the local disk, once per node.
        Raises UsageError if there is no index at `path` and UserError if it is incomplete or has another format.
        """
        url = str(path).rstrip("/") if is_remote(str(path)) else None
        path = _local_copy(url) if url else Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            raise UsageError(f"There is no index in {url or path}: create one with `swav index PATTERN --out {url or path}`.")
        try:
            folder = version_folder(path, manifest)
            return cls(folder, manifest, url and (url if folder == path else f"{url}/{folder.name}"))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"The index in {path} is incomplete ({error}): index the shards again.") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.place,)

    def lines(self, numbers: Sequence[int] | np.ndarray) -> list[IndexLine]:
        """Lines of samples by number, in the given order. Raises IndexError for a number outside 0 .. samples-1."""
        wanted = np.asarray(numbers, dtype=np.int64)
        if not len(wanted):
            return []
        if wanted.min() < 0 or wanted.max() >= self.samples:
            raise IndexError(f"samples are numbered 0 .. {self.samples - 1}, got {wanted.min()} .. {wanted.max()}")
        order = np.argsort(wanted, kind="stable")
        table = pa.Table.from_batches(list(self._take(wanted[order])))
        found: list[IndexLine] = [None] * len(wanted)  # type: ignore[list-item]
        columns = [table[name].to_pylist() for name in ("shard", "key", "offset", "size", "extension", "label")]
        known = {shard: self._of_shard(shard) for shard in set(columns[0])}
        for place, shard, key, offset, size, extension, label in zip(order.tolist(), *columns, strict=True):
            url, version, whole, name, shard_size, probe = known[shard]
            excluded = bool(self.excluded) and (url, key) in self.taken_out
            found[place] = IndexLine(
                int(wanted[place]), key, url, offset, size, extension, label, version, whole, excluded, name, shard_size, probe
            )
        return found

    def _of_shard(self, number: int) -> tuple[str, str, bool, str, int, bytes | None]:
        shards = self.shards
        place = shards.url(number), shards.version(number), bool(shards.whole[number])
        return *place, shards.names[number], shards.size(number), shards.probe(number)

    @cached_property
    def taken_out(self) -> Excluded:
        """The samples of this version that the exclusion list names now."""
        return self.excluded.on(self.shards.urls())

    def table(self, shard: int) -> pa.Table:
        """All lines of a shard (columns of `SCHEMA`). Only for versions without repeats."""
        first, last = int(self.shards.first[shard]), int(self.shards.first[shard + 1])
        return pa.Table.from_batches(list(self._take(np.arange(first, last))), SCHEMA)

    def column(self, name: str, most: int) -> np.ndarray:
        """A column of the first `most` lines or somewhat more."""
        found: list[np.ndarray] = []
        for number, part in enumerate(self._parts):
            if sum(map(len, found)) < most:
                values = self._file(number).read([name])[name].to_numpy()
                found.append(values + np.int32(part["first_shard"]) if name == "shard" else values)
        return np.concatenate(found)

    def labelled(self) -> int:
        """Number of samples with a label, from the statistics in the files."""
        total = 0
        for number in range(len(self._parts)):
            meta = self._file(number).metadata
            place = SCHEMA.names.index("label")
            groups = (meta.row_group(group).column(place) for group in range(meta.num_row_groups))
            total += sum(column.num_values - column.statistics.null_count for column in groups)
        return total

    def _take(self, ascending: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Lines of samples by ascending numbers, one batch per row group."""
        parts = np.searchsorted(self._first, ascending, side="right") - 1
        inside = ascending - self._first[parts]
        groups = inside // GROUP
        cuts = np.flatnonzero(np.diff(parts) | np.diff(groups)) + 1
        for places in np.split(np.arange(len(ascending)), cuts):
            first = places[0]
            batch = self._group(int(parts[first]), int(groups[first]))
            yield batch.take(pa.array(inside[places] - groups[first] * GROUP))

    def _group(self, part: int, group: int) -> pa.RecordBatch:
        if (batch := self._groups.get((part, group))) is None:
            table = renumbered(self._file(part).read_row_group(group), self._parts[part]["first_shard"])
            batch = table.combine_chunks().to_batches()[0]
            self._groups[part, group] = batch
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((part, group))
        return batch

    def _file(self, part: int) -> pq.ParquetFile:
        if (file := self._files.get(part)) is None:
            file = self._files[part] = pq.ParquetFile(self.path / self._parts[part]["file"])
            if len(self._files) > _CACHED_FILES:
                self._files.popitem(last=False)[1].close()
        return file


def _local_copy(url: str) -> Path:
    """A folder on the local disk with the index, or the version of one, at a URL, and its exclusion list."""
    index, _, name = url.rpartition("/")
    if not name.startswith("version-"):
        return local_copy_of_folder(url)
    return local_copy_of_folder(index, lambda key: "/" not in key or key.startswith(f"{name}/")) / name
