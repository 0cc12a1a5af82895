"""The files of an embedding set: one line per sample of an index, in parts whose boundaries depend on the index alone.

SET/manifest.json              what the set is made of, and its parts; written last: without it the set is incomplete
SET/part-00000.parquet …       `schema`, in the order of the index
SET/thumbnails-00000.parquet … `THUMBNAILS`, if asked for
SET/_job/                      while the set is incomplete: what it is made of, and a report of each finished part
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

FORMAT = 1
MANIFEST = "manifest.json"
JOB = "_job/job.json"
OK = "ok"
"""The outcome of a sample that has an embedding."""

_LEAST, _MOST = 64, 8192  # samples of a part
_PARTS = 32  # of a set, as far as these limits allow

Space = Literal["backbone", "head"]
DType = Literal["float16", "int8"]

THUMBNAILS = pa.schema([("sample", pa.int64()), ("thumbnail", pa.binary())])


@dataclass(frozen=True)
class Recipe:
    """What a set is made of. The same recipe gives the same set.

    model, index: digests. space: `backbone` for the encoder's output, `head` for the projection that is compared with prototypes.
    """

    model: str
    index: str
    samples: int
    dim: int
    transform: dict[str, Any]
    space: Space = "backbone"
    dtype: DType = "float16"
    thumbnails: bool = False

    @property
    def part_rows(self) -> int:
        """Samples of each part but the last: a power of two."""
        wanted = 1 << max(0, (-(-self.samples // _PARTS) - 1).bit_length())
        return min(max(wanted, _LEAST), _MOST)

    @property
    def parts(self) -> list[range]:
        """The sample numbers of each part."""
        return [range(a, min(a + self.part_rows, self.samples)) for a in range(0, self.samples, self.part_rows)]

    def written(self) -> dict[str, Any]:
        """The JSON form."""
        return {"format": FORMAT, **asdict(self), "part_rows": self.part_rows}

    @classmethod
    def read(cls, tree: dict[str, Any]) -> Recipe:
        """Raises ValueError for another format and KeyError for a missing field."""
        if tree["format"] != FORMAT:
            raise ValueError(f"format {tree['format']}; this version reads format {FORMAT}")
        return cls(**{name: tree[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class PartReport:
    """A finished part, as the manifest lists it. refused: samples without an embedding, by outcome."""

    file: str
    rows: int
    size: int  # bytes
    sha256: str
    labelled: int
    refused: dict[str, int]
    thumbnails: dict[str, Any] | None = None  # file, rows, size, sha256

    def json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, data: bytes) -> PartReport:
        return cls(**json.loads(data))


def schema(recipe: Recipe) -> pa.Schema:
    """Columns of a part. embedding: unit length; zeros for a sample without one (Parquet readers fail on null lists). content: xxh3-64 of the file's bytes.

    With dtype int8, an embedding is int8 × scale.
    """
    value = pa.float16() if recipe.dtype == "float16" else pa.int8()
    scale = [("scale", pa.float32())] if recipe.dtype == "int8" else []
    return pa.schema(
        [
            ("sample", pa.int64()),
            ("key", pa.string()),
            ("shard", pa.string()),
            ("label", pa.string()),
            ("cluster", pa.int32()),  # the nearest prototype; -1 without one
            ("score", pa.float32()),  # its cosine
            ("embedding", pa.list_(value, recipe.dim)),
            ("outcome", pa.string()),
            ("content", pa.uint64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            *scale,
        ]
    )


def part_file(number: int) -> str:
    return f"part-{number:05d}.parquet"


def thumbnail_file(number: int) -> str:
    return f"thumbnails-{number:05d}.parquet"


def report_file(number: int) -> str:
    return f"_job/{number:05d}.json"
