"""Embeds a whole index and assigns clusters. The service answers neighbour and cluster requests from the result."""

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
    """Writes out/embeddings.parquet and out/embeddings.json.

    Columns: key, shard, sample, label, cluster (nearest prototype), score (its cosine), embedding (float16, unit length),
    thumbnail (JPEG). progress(done, total) counts images.
    Returns samples (embedded), labelled (of these), refused (by reason), dim, model, index_digest and out.
    """
    package = load_package(package_folder)
    function = encoder_function(package.encoder, package.meta["input_size"])
    dim, report_file = int(package.meta["feature_dim"]), out / "embeddings.json"
    refused, labelled, written, seen = Counter[str](), 0, 0, 0
    with replacing(out / "embeddings.parquet") as aside:
        with pq.ParquetWriter(aside, _schema(dim)) as file:
            for batch in batches(index, range(index.samples), policy):
                if batch.images:
                    values = function(batch.images)
                    file.write_table(_table(batch, values, *assign(package, values), policy, thumbnails))
                    written += len(batch.images)
                    labelled += sum(line.label is not None for line in batch.lines)
                seen += len(batch.images) + batch.refused.total()
                refused += batch.refused
                progress(seen, index.samples)
        report_file.unlink(missing_ok=True)  # before the table is replaced, so that it never describes another one
    report = {
        "samples": written,
        "labelled": labelled,
        "refused": refused,
        "dim": dim,
        "model": package_digest(package_folder),
        "index_digest": index.digest,
    }
    write_text(report_file, json.dumps(report))
    return {**report, "out": str(out)}


def assign(package: Package, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest prototype int32 [n] and its cosine float32 [n] for encoder features float32 [n, D]; -1 and 0 without prototypes."""
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
        [line.name for line in batch.lines],
        [line.number for line in batch.lines],
        [line.label for line in batch.lines],
        clusters,
        scores,
        pa.FixedSizeListArray.from_arrays(flat, values.shape[1]),
        pictures,
    ]
    return pa.table(columns, schema=_schema(values.shape[1]))
