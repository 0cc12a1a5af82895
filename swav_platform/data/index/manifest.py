"""The manifest of an index and the table of its shards, which a process keeps in memory: O(shards)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from swav_platform.data.index.names import short_names
from swav_platform.data.index.shard import Skipped
from swav_platform.data.storage.cache import COMMAND
from swav_platform.errors import UserError

FORMAT = 2
GROUP = 8192  # lines per row group
SHARDS = "_shards.parquet"
"""Begins with "_", so that readers of Parquet folders skip it."""

_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("samples", pa.int64()),
        ("digest", pa.binary(16)),
        ("whole", pa.bool_()),
        ("skipped", pa.string()),
        ("probe", pa.binary()),
    ]
)


@dataclass(frozen=True)
class ShardFile:
    """The identity of a shard, known without reading it. Equal values mean that the shard is unchanged.

    version: modification time in ns, or the ETag of a remote shard.
    """

    url: str
    size: int
    version: str


@dataclass(frozen=True)
class Shard:
    """A shard of an index.

    digest: 16 bytes, of its name, size and lines. whole: it can't be read by ranges. probe: a hash of some bytes, if it is local.
    """

    file: ShardFile
    samples: int
    digest: bytes
    whole: bool
    skipped: Skipped
    probe: bytes | None = None


class ShardTable:
    """The shards of an index in order. Stored as columns, so that 100,000 shards open in milliseconds."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self.samples = self._table["samples"].to_numpy()
        self.first = np.concatenate([[0], np.cumsum(self.samples)])
        self.whole = self._table["whole"].to_numpy(zero_copy_only=False)

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> ShardTable:
        columns: list[list[Any]] = [[] for _ in _SCHEMA]
        for shard in shards:
            skipped = _as_json(shard.skipped)
            line = (
                shard.file.url,
                shard.file.size,
                shard.file.version,
                shard.samples,
                shard.digest,
                shard.whole,
                skipped,
                shard.probe,
            )
            for column, value in zip(columns, line, strict=True):
                column.append(value)
        return cls(pa.table([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA))

    @classmethod
    def read(cls, path: Path) -> ShardTable:
        table = pq.ParquetFile(path).read()
        if "probe" not in table.column_names:  # indexes from before there were probes
            table = table.append_column("probe", pa.nulls(table.num_rows, pa.binary()))
        return cls(table)

    def write(self, path: Path) -> None:
        pq.write_table(self._table, path, compression="zstd")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def url(self, number: int) -> str:
        return str(self._table["url"][number].as_py())

    def version(self, number: int) -> str:
        return str(self._table["version"][number].as_py())

    def size(self, number: int) -> int:
        return int(self._table["size"][number].as_py())

    def probe(self, number: int) -> bytes | None:
        value: bytes | None = self._table["probe"][number].as_py()
        return value

    def urls(self) -> list[str]:
        return list(self._table["url"].to_pylist())

    @cached_property
    def names(self) -> list[str]:
        """The shortest end of each shard's path that is unique in the index."""
        return short_names(self.urls())

    def __getitem__(self, number: int) -> Shard:
        line = {name: self._table[name][number].as_py() for name in _SCHEMA.names}
        skipped = Skipped(*json.loads(line["skipped"])) if line["skipped"] else Skipped()
        file = ShardFile(line["url"], line["size"], line["version"])
        return Shard(file, line["samples"], line["digest"], line["whole"], skipped, line["probe"])

    def commands(self) -> list[str]:
        """URLs of the shards that are the output of a shell command."""
        urls = self._table["url"]
        return list(urls.filter(pc.starts_with(urls, COMMAND)).to_pylist())

    def files(self) -> list[ShardFile]:
        columns = [self._table[name].to_pylist() for name in ("url", "size", "version")]
        return [ShardFile(*line) for line in zip(*columns, strict=True)]

    def with_skipped(self) -> Iterator[tuple[str, Skipped]]:
        """The name of each shard that has skipped or unusual parts, and these."""
        for name, text in zip(self.names, self._table["skipped"].to_pylist(), strict=True):
            if text is not None:
                yield name, Skipped(*json.loads(text))

    def skipped(self) -> Skipped:
        """The sum over all shards."""
        total = Skipped()
        for text in self._table["skipped"].drop_null().to_pylist():
            total.add(Skipped(*json.loads(text)))
        return total


def _as_json(skipped: Skipped) -> str | None:
    if not skipped.counts and not skipped.several:
        return None
    return json.dumps([skipped.counts, skipped.examples, *([skipped.several] if skipped.several else [])])


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest in a folder, or None if there is none. Raises UserError if it can't be read."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"The index in {path} can't be read ({error}): remove the folder and index again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(
            f"The index in {path} has a format that this version does not support: remove the folder and index again."
        )
    return manifest


def version_folder(path: Path, manifest: dict[str, Any]) -> Path:
    """The folder with the parts of a version. `path` is the folder of the index or of the version itself."""
    inside = path / str(manifest["version"])
    return inside if inside.is_dir() else path


def is_whole(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether all files of a version exist."""
    return all((folder / name).is_file() for name in (SHARDS, *(part["file"] for part in manifest["parts"])))


def renumbered(table: pa.Table, by: int) -> pa.Table:
    """Adds `by` to the shard numbers of the lines."""
    return table.set_column(0, "shard", pa.array(table["shard"].to_numpy() + np.int32(by)))
