"""Samples that must not be used: what somebody asked to have taken out.

The list of an index only grows. A new version of the index is made without these samples; a run that goes on with an
older version passes over them too (outcome `excluded`), so that positions stay what they are.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import replacing
from swav_platform.errors import UsageError

FILE = "_excluded.parquet"
_SCHEMA = pa.schema([("shard", pa.string()), ("key", pa.string())])


class Exclusions:
    """Keys, each of all shards or of one; a shard goes by its base name, as ledgers and sample logs know it."""

    def __init__(self, pairs: Iterable[tuple[str | None, str]] = ()) -> None:
        self._pairs = frozenset((shard and posixpath.basename(shard), key) for shard, key in pairs)
        self._keys = frozenset(key for _, key in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __or__(self, other: Exclusions) -> Exclusions:
        return Exclusions(self._pairs | other._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exclusions) and self._pairs == other._pairs

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, sample: tuple[str, str]) -> bool:
        """sample: (shard, key)."""
        shard, key = sample
        return key in self._keys and ((None, key) in self._pairs or (posixpath.basename(shard), key) in self._pairs)

    def __sub__(self, other: Exclusions) -> Exclusions:
        return Exclusions(self._pairs - other._pairs)

    def unmatched(self, shard: str, keys: Iterable[str]) -> Exclusions:
        """Those that name none of these samples of a shard."""
        if not (here := self._keys.intersection(keys)):
            return self
        name = posixpath.basename(shard)
        return Exclusions(pair for pair in self._pairs if pair[1] not in here or pair[0] not in (None, name))

    def lines(self) -> list[str]:
        """KEY or SHARD<tab>KEY, in order."""
        return sorted(key if shard is None else f"{shard}\t{key}" for shard, key in self._pairs)

    @classmethod
    def of_file(cls, path: str | Path) -> Exclusions:
        """A text file with a KEY or SHARD<tab>KEY in each line, or parquet with columns key and, if need be, shard.

        Raises UsageError for a file that can't be read or names nothing.
        """
        path = Path(path).expanduser()
        try:
            found = cls.of_parquet(path) if path.suffix == ".parquet" else cls(_pairs(path.read_text(encoding="utf-8-sig")))
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"The exclusion list {path} can't be read ({error}): give a text file with a KEY or SHARD<tab>KEY in each line, "
                f"or parquet with columns shard and key."
            ) from None
        if not found:
            raise UsageError(f"The exclusion list {path} names no sample: put a KEY or SHARD<tab>KEY in each line.")
        return found

    @classmethod
    def of_parquet(cls, path: Path) -> Exclusions:
        table = pq.ParquetFile(path).read()
        keys = table["key"].to_pylist()
        shards = table["shard"].to_pylist() if "shard" in table.column_names else [None] * len(keys)
        return cls(zip(shards, keys, strict=True))

    @classmethod
    def of_index(cls, folder: Path) -> Exclusions:
        """The list of the index in `folder`, empty if there is none."""
        path = folder / FILE
        return cls.of_parquet(path) if path.exists() else cls()

    def write(self, folder: Path) -> None:
        ordered = sorted(self._pairs, key=lambda pair: (pair[0] or "", pair[1]))
        columns = [pa.array([pair[n] for pair in ordered], pa.string()) for n in (0, 1)]
        with replacing(folder / FILE) as aside:
            pq.write_table(pa.table(columns, schema=_SCHEMA), aside)


def _pairs(text: str) -> list[tuple[str | None, str]]:
    found = []
    for line in text.splitlines():
        shard, tab, key = line.rpartition("\t")
        if key:
            found.append((shard or None if tab else None, key))
    return found
