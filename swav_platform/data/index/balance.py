"""Balanced sampling: oversampled items appear as several lines of the index.

The plan needs no change: a repeat has its own sample number, hence its own position and its own crops. Repeats are not adjacent:
the index lists all samples once, then those that appear a second time, and so on.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from swav_platform.data.index.exclusions import Line, lines_of
from swav_platform.data.index.lookup import Index
from swav_platform.data.order.permutation import hashes, key
from swav_platform.errors import UsageError

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

    def match_any(self, shard: str, keys: list[str]) -> bool:
        """Whether any of these samples has an entry."""
        name = posixpath.basename(shard)
        return any((name, k) in self._weights or (None, k) in self._weights for k in keys)

    def of(self, shard: str, keys: list[str]) -> np.ndarray:
        """float64 [n]: mean number of times that each sample appears in an epoch."""
        name = posixpath.basename(shard)
        found = [self._weights.get((name, k), self._weights.get((None, k), self._least)) for k in keys]
        return np.minimum(np.array(found) / self._least, MOST)

    def digest(self) -> str:
        lines = sorted(f"{shard} {key} {weight}" for (shard, key), weight in self._weights.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def repeats(index: Index, weights: Weights) -> list[np.ndarray]:
    """int64 [samples] for each shard: weights rounded up or down at random, so that their means are exact.

    Raises UsageError if no sample of the index has a weight.
    """
    found, matched = [], False
    for number in range(len(index.shards)):
        first = int(index.shards.first[number])
        url, keys = index.shards.url(number), index.table(number)["key"].to_pylist()
        wanted, matched = weights.of(url, keys), matched or weights.match_any(url, keys)
        uniform = hashes(key(_ROUNDING), np.arange(first, first + len(wanted), dtype=np.uint64)) / 2.0**64
        found.append(np.floor(wanted + uniform).astype(np.int64))
    if not matched:
        raise UsageError(
            f"Weights {weights.name} match no sample of the index. The column key holds a sample's name in its tar without "
            f"extension, such as {index.lines([0])[0].key}; the optional column shard holds the base name of its tar."
        )
    return found


def passes(index: Index, times: list[np.ndarray]) -> Iterator[pa.Table]:
    """Lines of all samples that appear at least once, then of those that appear at least twice, and so on."""
    for number in range(max((int(of_shard.max(initial=0)) for of_shard in times), default=0)):
        for shard, of_shard in enumerate(times):
            if (repeated := of_shard > number).any():
                yield index.table(shard).filter(pa.array(repeated))
