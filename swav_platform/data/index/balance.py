"""Balanced sampling: an index in which a sample stands as often as its weight asks.

The plan knows nothing of it: a repeat is a sample number of its own, so it has a position of its own and with it crops of
its own. Repeats do not stand beside each other: first come all samples once, then those that come a second time, and so on.
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
"""Times that a sample may stand in an epoch: a cluster of one image is not shown a thousand times."""

_AS_TEXT = pa.csv.ConvertOptions(column_types={"key": pa.string(), "shard": pa.string()})  # 007 is not 7
_ROUNDING = 5  # what a key is for; plan.py and mix.py have the others


class Weights:
    """Of samples by (shard, key) or by key; those that are not named have the smallest weight."""

    def __init__(self, weights: dict[Line, float], name: str = "given") -> None:
        self._weights, self.name = weights, name
        self._least = min(weight for weight in weights.values() if weight > 0)

    @classmethod
    def of_file(cls, path: str | Path) -> Weights:
        """Parquet or CSV with columns `key`, if need be `shard`, and `weight` or `cluster`: a sample of a cluster has the
        weight 1 / size of the cluster. Raises UsageError for anything else."""
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
                raise ValueError(f"'{samples[weights.index(None)][1]}' has none")
            if not any(weight > 0 for weight in weights) or min(weights) < 0 or not np.isfinite(weights).all():
                raise ValueError("weights must be 0 or more, and one of them more than 0")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"The weights {path} can't be read ({error}): give parquet or CSV with columns key and weight, or key and cluster."
            ) from None
        return cls(dict(zip(samples, weights, strict=True)), str(path))

    def names_one(self, shard: str, keys: list[str]) -> bool:
        """Whether there is a weight for any of these samples."""
        name = posixpath.basename(shard)
        return any((name, k) in self._weights or (None, k) in self._weights for k in keys)

    def of(self, shard: str, keys: list[str]) -> np.ndarray:
        """float64 [n]: times that each sample shall stand in an epoch, on average."""
        name = posixpath.basename(shard)
        found = [self._weights.get((name, k), self._weights.get((None, k), self._least)) for k in keys]
        return np.minimum(np.array(found) / self._least, MOST)

    def digest(self) -> str:
        lines = sorted(f"{shard} {key} {weight}" for (shard, key), weight in self._weights.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def repeats(index: Index, weights: Weights) -> list[np.ndarray]:
    """int64 [samples] of each shard: weights rounded up or down by chance, so that they hold on average.

    Raises UsageError if no sample has a weight.
    """
    found, named = [], False
    for number in range(len(index.shards)):
        first = int(index.shards.first[number])
        url, keys = index.shards.url(number), index.table(number)["key"].to_pylist()
        wanted, named = weights.of(url, keys), named or weights.names_one(url, keys)
        chance = hashes(key(_ROUNDING), np.arange(first, first + len(wanted), dtype=np.uint64)) / 2.0**64
        found.append(np.floor(wanted + chance).astype(np.int64))
    if not named:
        raise UsageError(
            f"The weights {weights.name} name no sample of the index: key is a sample's name in its tar without extension, such as "
            f"{index.lines([0])[0].key}; shard, if there is such a column, the base name of its tar."
        )
    return found


def passes(index: Index, times: list[np.ndarray]) -> Iterator[pa.Table]:
    """All samples that stand at least once, then all that stand at least twice, and so on."""
    for number in range(max((int(of_shard.max(initial=0)) for of_shard in times), default=0)):
        for shard, of_shard in enumerate(times):
            if (stands := of_shard > number).any():
                yield index.table(shard).filter(pa.array(stands))
