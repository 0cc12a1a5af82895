"""Exclusion lists: samples that must not be used, for example after a takedown request.

The list of an index only grows. A new version of the index omits these samples. A run that resumes with an older version skips
them too (outcome `excluded`), so its positions do not change.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from itertools import compress, repeat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import replacing
from swav_platform.errors import UsageError

FILE = "_excluded.parquet"
_SCHEMA = pa.schema([("shard", pa.string()), ("key", pa.string()), ("found", pa.bool_())])

Line = tuple[str | None, str]
"""(base name of a shard or None for all shards, key)."""


class Exclusions:
    """A set of keys, each for one shard or for all. Shards are identified by base name, as in ledgers and sample logs.

    found: the lines that matched a sample when an index was built.
    """

    def __init__(self, lines: Iterable[Line] = (), found: Iterable[Line] = ()) -> None:
        self._lines = frozenset(normalised(shard, key) for shard, key in lines)
        self._keys = frozenset(key for _, key in self._lines)
        self._found = frozenset(found)

    def __len__(self) -> int:
        return len(self._lines)

    def __or__(self, other: Exclusions) -> Exclusions:
        return Exclusions(self._lines | other._lines, self._found | other._found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exclusions) and self._lines == other._lines

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, sample: tuple[str, str]) -> bool:
        """sample: (shard, key)."""
        shard, key = sample
        return key in self._keys and ((None, key) in self._lines or (posixpath.basename(shard), key) in self._lines)

    def matching(self, shard: str, keys: Iterable[str]) -> set[Line]:
        """The lines that match one of these samples of a shard."""
        name = posixpath.basename(shard)
        return {line for key in self._keys.intersection(keys) for line in ((None, key), (name, key)) if line in self._lines}

    def with_found(self, lines: Iterable[Line]) -> Exclusions:
        """The same list, with these lines marked as matched too."""
        return Exclusions(self._lines, self._found.union(lines))

    def without_sample(self, asked: Exclusions) -> list[str]:
        """The lines of `asked` that never matched a sample, in the format of a list file."""
        keys = {key for _, key in self._found}
        missed = [(s, k) for s, k in asked._lines - self._found if k not in keys or (s and (None, k) not in self._found)]
        return sorted(key if shard is None else f"{shard}\t{key}" for shard, key in missed)

    @classmethod
    def of_file(cls, path: str | Path) -> Exclusions:
        """Reads a text file with one KEY or SHARD<tab>KEY per line, or Parquet with columns key and, optionally, shard.

        Raises UsageError if the file can't be read or is empty.
        """
        path = Path(path).expanduser()
        try:
            found = cls.of_parquet(path) if path.suffix == ".parquet" else cls(_lines(path.read_text(encoding="utf-8-sig")))
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"Exclusion list {path} can't be read ({error}): use a text file with one KEY or SHARD<tab>KEY per line, "
                f"or Parquet with columns shard and key."
            ) from None
        if not found:
            raise UsageError(f"Exclusion list {path} is empty: write one KEY or SHARD<tab>KEY per line.")
        return found

    @classmethod
    def of_parquet(cls, path: Path) -> Exclusions:
        return cls(lines_of(pq.ParquetFile(path).read()))

    @classmethod
    def of_index(cls, folder: Path) -> Exclusions:
        """The list of the index in `folder`; empty if the index has none."""
        if not (path := folder / FILE).exists():
            return cls()
        table = pq.ParquetFile(path).read()
        found = table["found"].to_pylist() if "found" in table.column_names else repeat(True)
        lines = lines_of(table)
        return cls(lines, compress(lines, found))

    def write(self, folder: Path) -> None:
        ordered = sorted(self._lines, key=lambda line: (line[0] or "", line[1]))
        shards, keys = zip(*ordered, strict=True) if ordered else ((), ())
        columns = [pa.array(shards, pa.string()), pa.array(keys, pa.string()), pa.array([x in self._found for x in ordered])]
        with replacing(folder / FILE) as aside:
            pq.write_table(pa.table(columns, schema=_SCHEMA), aside)


def _lines(text: str) -> list[Line]:
    found = []
    for line in text.splitlines():
        shard, tab, key = line.rpartition("\t")
        if key:
            found.append((shard if tab else None, key))
    return found


def lines_of(table: pa.Table) -> list[Line]:
    """The samples in the columns `key` and, if present, `shard` of a table.

    Raises KeyError if the column `key` is missing and ValueError if a line has no key.
    """
    keys = table["key"].cast(pa.string()).to_pylist()
    if None in keys:
        raise ValueError(f"line {keys.index(None) + 1} has no key")
    shards = table["shard"].cast(pa.string()).to_pylist() if "shard" in table.column_names else repeat(None, len(keys))
    return [normalised(shard, key) for shard, key in zip(shards, keys, strict=True)]


def normalised(shard: str | None, key: str) -> Line:
    return posixpath.basename(shard) if shard else None, key
