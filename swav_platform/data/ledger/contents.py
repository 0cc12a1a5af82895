"""What the images of a run's first epoch contain: a hash of their bytes, and whether they look odd.

`contents/part-….parquet` in the run's folder, one part per checkpoint: `content uint64` (xxh3-64 of the bytes), `name uint64` (of
shard and key), `sample int64`, `look uint8` (bits of `images/look.py`). A part holds facts about samples, so it may repeat others.
Of more than MOST samples, only those with a hash in a fixed part of all hashes are compared.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.runs.storage import Storage

MOST = 2**22
"""Samples that are compared; a process holds 25 bytes for each."""

FOLDER = "contents"
SCHEMA = pa.schema([("content", pa.uint64()), ("name", pa.uint64()), ("sample", pa.int64()), ("look", pa.uint8())])


@dataclass(frozen=True)
class Contents:
    """Different images by name, ordered by content and then by sample. Columns of equal length."""

    content: np.ndarray  # uint64
    name: np.ndarray  # uint64
    sample: np.ndarray  # int64
    look: np.ndarray  # uint8

    @classmethod
    def of(cls, columns: Sequence[np.ndarray]) -> Contents:
        """Of an image that is listed several times, the smallest sample number is kept: oversampled images have several."""
        content, name, sample, _ = columns
        order = np.lexsort((sample, name, content))
        ordered = np.stack([content[order], name[order]])
        first = (ordered[:, 1:] != ordered[:, :-1]).any(0)
        kept = order[np.concatenate([np.ones(min(len(order), 1), bool), first])]
        kept = kept[np.lexsort((sample[kept], content[kept]))]
        return cls(*(column[kept] for column in columns))

    def __len__(self) -> int:
        return len(self.content)

    def __add__(self, other: Contents) -> Contents:
        return Contents.of([np.concatenate(pair) for pair in zip(self.columns, other.columns, strict=True)])

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.content, self.name, self.sample, self.look

    @property
    def starts(self) -> np.ndarray:
        """The first line of each group of images with equal bytes."""
        return np.flatnonzero(np.concatenate([np.ones(min(len(self), 1), bool), self.content[1:] != self.content[:-1]]))

    @property
    def sizes(self) -> np.ndarray:
        """int64: images in each group."""
        return np.diff(self.starts, append=len(self))

    @property
    def copied(self) -> int:
        """Number of images that have the same bytes as others."""
        sizes = self.sizes
        return int(sizes[sizes > 1].sum())

    @property
    def groups(self) -> list[np.ndarray]:
        """Sample numbers of images with equal bytes, largest groups first; in each, the smallest number first."""
        starts, sizes = self.starts, self.sizes
        order = [int(g) for g in np.argsort(-sizes, kind="stable") if sizes[g] > 1]
        return [self.sample[starts[g] : starts[g] + sizes[g]] for g in order]


def read_contents(storage: Storage) -> Contents:
    """All parts of a run; empty if it has none."""
    tables = [pq.read_table(io.BytesIO(storage.get(key)), schema=SCHEMA) for key in storage.entries(f"{FOLDER}/")]
    table = pa.concat_tables(tables or [SCHEMA.empty_table()])
    return Contents.of([table[name].to_numpy() for name in SCHEMA.names])


def write_contents(storage: Storage, steps: int, contents: Contents) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table(list(contents.columns), schema=SCHEMA), sink)
    storage.put(f"{FOLDER}/part-{steps:09d}.parquet", sink.getvalue())


def share_of(samples: int) -> int:
    """Of how many hashes one is compared, in a set of so many samples: 1, 2, 4 …"""
    return 1 << max(0, (-(-samples // MOST) - 1).bit_length())
