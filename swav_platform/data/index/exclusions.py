"""Exclusion lists: samples that must not be used, for example after a takedown request.

The list of an index only grows. A new version of the index omits these samples. A run that resumes with an older version skips
them too (outcome `excluded`), so its positions do not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import replacing
from swav_platform.data.index.names import EVERYWHERE, ShardNames, is_end_of, written
from swav_platform.errors import UsageError

FILE = "_excluded.parquet"
_FORMAT = b"2"  # format 1, without this mark, has base names of shards, which mean the shards of all folders
_SCHEMA = pa.schema(
    [("shard", pa.string()), ("key", pa.string()), ("found", pa.bool_()), ("url", pa.string())], {b"swav.format": _FORMAT}
)

Line = tuple[str | None, str]
"""(shard or None for all shards, key). A shard is a path, a URL or the end of one; see names.py."""


class Exclusions:
    """A set of keys, each for one shard or for all.

    found: the lines that matched a sample when an index was built, with the URL of its shard. A line that was clear then stays clear
    when other shards of the same name are added.
    """

    def __init__(self, lines: Iterable[Line] = (), found: Mapping[Line, str] | None = None) -> None:
        self._lines = frozenset(normalised(shard, key) for shard, key in lines)
        self._found = dict(found or {})

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def lines(self) -> frozenset[Line]:
        return self._lines

    def __or__(self, other: Exclusions) -> Exclusions:
        return Exclusions(self._lines | other._lines, other._found | self._found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exclusions) and self._lines == other._lines

    __hash__ = None  # type: ignore[assignment]

    def on(self, urls: Iterable[str]) -> Excluded:
        """The samples of these shards that the list excludes."""
        everywhere = {key: (None, key) for shard, key in self._lines if shard is None}
        of_shard: dict[str, dict[str, set[Line]]] = {}
        ambiguous: dict[Line, list[str]] = {}
        names = ShardNames(urls) if len(everywhere) < len(self._lines) else None
        for shard, key in self._lines:
            if shard is None or names is None:
                continue
            meant = names.meant(shard)
            if len(meant) > 1 and not shard.startswith(EVERYWHERE):
                meant = [url for url in meant if url == self._found.get((shard, key))] or meant
                if len(meant) > 1:
                    ambiguous[shard, key] = meant
                    continue
            for url in meant:
                of_shard.setdefault(url, {}).setdefault(key, set()).add((shard, key))
        return Excluded(everywhere, of_shard, ambiguous)

    def may_cover(self, shard: str, key: str) -> bool:
        """Whether a line may mean a sample that an earlier product names, in which shards have names instead of paths."""
        shards = self._by_key.get(key, [])
        return any(other is None or is_end_of(other.removeprefix(EVERYWHERE), shard) for other in shards)

    @cached_property
    def _by_key(self) -> dict[str, list[str | None]]:
        found: dict[str, list[str | None]] = {}
        for shard, key in self._lines:
            found.setdefault(key, []).append(shard)
        return found

    def with_found(self, lines: Mapping[Line, str]) -> Exclusions:
        """The same list, with these lines marked as matched too."""
        return Exclusions(self._lines, self._found | dict(lines))

    def without_sample(self, asked: Exclusions) -> list[str]:
        """The lines of `asked` that never matched a sample, in the format of a list file."""
        keys = {key for _, key in self._found}
        missed = [(s, k) for s, k in asked._lines - self._found.keys() if k not in keys or (s and (None, k) not in self._found)]
        return [as_text(line) for line in sorted(missed, key=as_text)]

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
        if (table.schema.metadata or {}).get(b"swav.format") != _FORMAT:
            lines = [(shard and EVERYWHERE + shard, key) for shard, key in lines]
        urls = table["url"].to_pylist() if "url" in table.column_names else repeat("")
        return cls(lines, {line: url or "" for line, url, matched in zip(lines, urls, found, strict=False) if matched})

    def write(self, folder: Path) -> None:
        ordered = sorted(self._lines, key=lambda line: (line[0] or "", line[1]))
        shards, keys = zip(*ordered, strict=True) if ordered else ((), ())
        urls = [self._found.get(line) for line in ordered]
        columns = [
            pa.array(shards, pa.string()),
            pa.array(keys, pa.string()),
            pa.array([url is not None for url in urls]),
            pa.array(urls, pa.string()),
        ]
        with replacing(folder / FILE) as aside:
            pq.write_table(pa.table(columns, schema=_SCHEMA), aside)


def _lines(text: str) -> list[Line]:
    """Keys may have tabs and the line ends of Unicode in them."""
    found: list[Line] = []
    for line in text.split("\n"):
        shard, tab, key = line.partition("\t")
        if tab and key:
            found.append((shard, key))
        elif shard and not tab:
            found.append((None, line))
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
    return written(shard), key


def as_text(line: Line) -> str:
    """A line in the format of a list file."""
    shard, key = line
    return key if shard is None else f"{shard}\t{key}"


@dataclass(frozen=True)
class Excluded:
    """The samples of an index that its list excludes. ambiguous: lines that may mean several shards, which exclude nothing."""

    everywhere: Mapping[str, Line]
    of_shard: Mapping[str, Mapping[str, set[Line]]]
    ambiguous: Mapping[Line, list[str]]

    def __bool__(self) -> bool:
        return bool(self.everywhere or self.of_shard)

    def __contains__(self, sample: tuple[str, str]) -> bool:
        """sample: (URL of the shard, key)."""
        url, key = sample
        return key in self.everywhere or key in self.of_shard.get(url, ())

    def matching(self, url: str, keys: Iterable[str]) -> set[Line]:
        """The lines that match one of these samples of a shard."""
        mine = self.of_shard.get(url, {})
        lines = {self.everywhere[key] for key in self.everywhere.keys() & keys}
        return lines.union(*(mine[key] for key in mine.keys() & keys))
