"""Embeddings of a whole index beside their clusters: what the service answers neighbours and clusters from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from swav_platform.atomic import replacing, write_text
from swav_platform.config import ImagePolicy
from swav_platform.data.index.lookup import Index
from swav_platform.evaluation.features import Batch, batches, encoder_function, unit
from swav_platform.images.decoding.decode import thumbnail
from swav_platform.models.package import Package, load_package, package_digest


def embed(
    package_folder: Path,
    index: Index,
    out: Path,
    policy: ImagePolicy,
    *,
    thumbnails: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes out/embeddings.parquet and out/embeddings.json; returns samples, labelled (of these), refused by reason, dim, out.

    Columns: key, shard, sample, label, cluster (nearest prototype), score (its cosine), embedding (float16, unit
    length), thumbnail (JPEG).
    """
    package = load_package(package_folder)
    function = encoder_function(package.encoder, package.meta["input_size"])
    refused, labelled, written, dim, told = Counter[str](), 0, 0, int(package.meta["feature_dim"]), out / "embeddings.json"
    with replacing(out / "embeddings.parquet") as aside:
        with pq.ParquetWriter(aside, _schema(dim)) as file:
            seen = 0
            for batch in batches(index, range(index.samples), policy):
                if batch.images:
                    values = function(batch.images)
                    file.write_table(_table(batch, values, *assign(package, values), policy, thumbnails))
                    written += len(batch.images)
                    labelled += sum(line.label is not None for line in batch.lines)
                seen += len(batch.images) + batch.refused.total()
                refused += batch.refused
                progress(seen, index.samples)
        told.unlink(missing_ok=True)  # it must never speak for another table
    report = {
        "samples": written,
        "labelled": labelled,
        "refused": refused,
        "dim": dim,
        "model": package_digest(package_folder),
        "index_digest": index.digest,
    }
    write_text(told, json.dumps(report))
    return {**report, "out": str(out)}


def assign(package: Package, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest prototype and its cosine for encoder features float32 [n, D]: int32 [n], float32 [n]. Without prototypes -1 and 0."""
    if not len(package.prototypes):
        return np.full(len(values), -1, np.int32), np.zeros(len(values), np.float32)
    with torch.inference_mode():
        projected = torch.nn.functional.normalize(package.projection(torch.from_numpy(values)), dim=1)
        score, cluster = (projected @ package.prototypes.T).max(1)
    return cluster.numpy().astype(np.int32), score.numpy().astype(np.float32)


def _schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            ("key", pa.string()),
            ("shard", pa.string()),
            ("sample", pa.int64()),
            ("label", pa.string()),
            ("cluster", pa.int32()),
            ("score", pa.float32()),
            ("embedding", pa.list_(pa.float16(), dim)),
            ("thumbnail", pa.binary()),
        ]
    )


def _table(
    batch: Batch, values: np.ndarray, clusters: np.ndarray, scores: np.ndarray, policy: ImagePolicy, thumbnails: bool
) -> pa.Table:
    flat = pa.array(unit(values).astype(np.float16).ravel())
    pictures: Sequence[bytes | None] = [thumbnail(content, policy) if thumbnails else None for content in batch.contents]
    columns = [
        [line.key for line in batch.lines],
        [Path(line.shard).name for line in batch.lines],
        [line.number for line in batch.lines],
        [line.label for line in batch.lines],
        clusters,
        scores,
        pa.FixedSizeListArray.from_arrays(flat, values.shape[1]),
        pictures,
    ]
    schema = _schema(values.shape[1])
    return pa.table(
        [pa.array(c, f.type) if not isinstance(c, pa.Array) else c for c, f in zip(columns, schema, strict=True)], schema=schema
    )
