"""Balanced sampling: oversampled items appear as several lines of the index.

The plan needs no change: a repeat has its own sample number, hence its own position and its own crops. Repeats are not adjacent:
the index lists all samples once, then those that appear a second time, and so on.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from swav_platform.data.index.exclusions import Line, lines_of
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.names import EVERYWHERE, ShardNames, ambiguous_lines
from swav_platform.data.order.permutation import hashes, key
from swav_platform.errors import UsageError

log = logging.getLogger("swav")

MOST = 100
"""Maximum repeats of a sample per epoch, so that a cluster of one image is not shown a thousand times."""

_AS_TEXT = pa.csv.ConvertOptions(column_types={"key": pa.string(), "shard": pa.string()})  # keeps the zeros of 007
_ROUNDING = 5  # purpose of a random key; plan.py and mix.py define the others


class Weights:
    """Weights of samples by (shard, key) or by key. Samples without an entry have the smallest weight."""

    def __init__(self, weights: dict[Line, float], name: str = "given") -> None:
        self._weights, self.name = weights, name
        self._least = min(weight for weight in weights.values() if weight > 0)

    @classmethod
    def of_file(cls, path: str | Path) -> Weights:
        """Reads Parquet or CSV with columns `key`, optionally `shard`, and `weight` or `cluster`.

        A sample of a cluster gets the weight 1 / size of the cluster. Raises UsageError for any other file.
        """
        path = Path(path).expanduser()
        try:
            table = pq.ParquetFile(path).read() if path.suffix == ".parquet" else pa.csv.read_csv(path, convert_options=_AS_TEXT)
            samples = lines_of(table)
            if "weight" in table.column_names:
                weights = table["weight"].cast(pa.float64()).to_pylist()
            else:
                clusters = table["cluster"].to_pylist()
                sizes = Counter(clusters)
                weights = [1 / sizes[cluster] for cluster in clusters]
            if None in weights:
                raise ValueError(f"'{samples[weights.index(None)][1]}' has no weight")
            if not any(weight > 0 for weight in weights) or min(weights) < 0 or not np.isfinite(weights).all():
                raise ValueError("weights must be at least 0, and one of them greater than 0")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"Weights {path} can't be read ({error}): use Parquet or CSV with columns key and weight, or key and cluster."
            ) from None
        return cls(dict(zip(samples, weights, strict=True)), str(path))

    def on(self, urls: Iterable[str]) -> WeightsOfShards:
        """The weights for these shards. Lines that may mean several shards have no effect; a warning names them."""
        names = ShardNames(urls)
        of_shard: dict[str, dict[str, float]] = {}
        ambiguous: dict[Line, list[str]] = {}
        for (shard, name), weight in self._weights.items():
            meant = names.meant(shard) if shard else []
            if len(meant) > 1 and shard and not shard.startswith(EVERYWHERE):
                ambiguous[shard, name] = meant
                continue
            for url in meant:
                of_shard.setdefault(url, {})[name] = weight
        if ambiguous:
            log.warning(ambiguous_lines("weights", ambiguous))
        return WeightsOfShards({name: w for (shard, name), w in self._weights.items() if shard is None}, of_shard, self._least)

    def digest(self) -> str:
        lines = sorted(f"{shard} {key} {weight}" for (shard, key), weight in self._weights.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class WeightsOfShards:
    """Weights of the samples of an index: by key, and by shard and key, which win. least: the weight of all others."""

    everywhere: Mapping[str, float]
    of_shard: Mapping[str, Mapping[str, float]]
    least: float

    def match_any(self, url: str, keys: list[str]) -> bool:
        """Whether any of these samples has an entry."""
        mine = self.of_shard.get(url, {})
        return any(k in mine or k in self.everywhere for k in keys)

    def of(self, url: str, keys: list[str]) -> np.ndarray:
        """float64 [n]: mean number of times that each sample appears in an epoch."""
        mine = self.of_shard.get(url, {})
        found = [mine.get(k, self.everywhere.get(k, self.least)) for k in keys]
        return np.minimum(np.array(found) / self.least, MOST)


def repeats(index: Index, weights: Weights) -> list[np.ndarray]:
    """int64 [samples] for each shard: weights rounded up or down at random, so that their means are exact.

    Raises UsageError if no sample of the index has a weight.
    """
    found, matched = [], False
    given = weights.on(index.shards.urls())
    for number in range(len(index.shards)):
        first = int(index.shards.first[number])
        url, keys = index.shards.url(number), index.table(number)["key"].to_pylist()
        wanted, matched = given.of(url, keys), matched or given.match_any(url, keys)
        uniform = hashes(key(_ROUNDING), np.arange(first, first + len(wanted), dtype=np.uint64)) / 2.0**64
        found.append(np.floor(wanted + uniform).astype(np.int64))
    if not matched:
        raise UsageError(
            f"Weights {weights.name} match no sample of the index. The column key holds a sample's name in its tar without "
            f"extension, such as {index.lines([0])[0].key}; the optional column shard holds the name or the path of its tar."
        )
    return found


def passes(index: Index, times: list[np.ndarray]) -> Iterator[pa.Table]:
    """Lines of all samples that appear at least once, then of those that appear at least twice, and so on."""
    for number in range(max((int(of_shard.max(initial=0)) for of_shard in times), default=0)):
        for shard, of_shard in enumerate(times):
            if (repeated := of_shard > number).any():
                yield index.table(shard).filter(pa.array(repeated))
