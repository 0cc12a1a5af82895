"""Builds a neighbour index from an embedding set, and measures it against exact search."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow as pa

from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.sets.read import EmbeddingSet, unit_vectors
from swav_platform.errors import UsageError, UserError
from swav_platform.neighbours.exact import exact_search, recalls
from swav_platform.neighbours.index import NeighbourIndex
from swav_platform.neighbours.lists import make_lists
from swav_platform.neighbours.stored import COLUMNS, FORMAT, LISTS, MANIFEST, ROWS, SCHEMA, StoredVectors, completed

log = logging.getLogger("swav")

Codec = Literal["auto", "sq8", "pq"]
CANDIDATES = {"sq8": 2, "pq": 16}
"""Candidates whose exact cosine is computed, × k."""

COLLAPSED = 0.98
"""Mean cosine to the mean direction from which on a set counts as collapsed."""

_FILES = {LISTS, ROWS, "vectors.f16", "place.i64", "lists.i32", "unordered.f16"}
_LARGE = 16 * 2**30  # bytes of 8-bit vectors from which on `auto` is `pq`
_BLOCK = 65_536  # vectors in memory
_TRAIN = 65_536  # vectors that train a quantiser
_QUERIES, _K = 512, 10  # of the measurement
_SURE = 1.6  # standard errors: 19 of 20 other samples of queries would reach the target too


def build(
    embeddings: EmbeddingSet,
    folder: Path,
    *,
    codec: Codec = "auto",
    target: float = 0.985,
    excluded: Exclusions | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Writes the index of a set into `folder`. target: the wanted share of the true ten nearest samples (recall).

    Returns samples, dim, lists, probes, seconds, bytes (in lists), recall_at_10, queries_per_second and out.
    Raises UserError for an empty set.
    """
    began = time.monotonic()
    (folder / MANIFEST).unlink(missing_ok=True)  # first: without it there is no index
    if folder.is_dir() and {path.name for path in folder.iterdir()} - _FILES:
        raise UsageError(f"{folder} holds other files: name an empty folder for the neighbour index.")
    folder.mkdir(parents=True, exist_ok=True)
    progress("reads the set")
    clusters, total = _copy(embeddings, folder, excluded)
    n = len(clusters)
    chosen = _codec(codec, n, embeddings.dim)
    progress("makes lists")
    mapped = np.memmap(folder / "unordered.f16", np.float16, "r").reshape(n, embeddings.dim)
    assigned, centres = make_lists(clusters, lambda rows: mapped[rows].astype(np.float32))
    _store_in_order(folder, mapped, assigned)
    (folder / "unordered.f16").unlink()
    progress("quantises")
    size = _write_lists(folder, assigned, centres, StoredVectors(folder, embeddings.dim), chosen)
    manifest = {
        "format": FORMAT,
        "set": embeddings.digest,
        "model": embeddings.model,
        "space": embeddings.space,
        "samples": n,
        "dim": embeddings.dim,
        "lists": len(centres),
        "codec": chosen,
        "candidates": CANDIDATES[chosen],
        "bytes": size,
        "collapsed": bool(np.linalg.norm(total) / n > COLLAPSED),
        "seconds": round(time.monotonic() - began, 2),
    }
    progress("measures recall")
    manifest |= measure(NeighbourIndex(folder, {**manifest, "probes": 1, "exhaustive": False}), target)
    _warn(manifest, target)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    told = ("samples", "dim", "lists", "probes", "seconds", "bytes", "recall_at_10", "queries_per_second")
    return {**{name: manifest[name] for name in told}, "out": str(folder)}


def _copy(embeddings: EmbeddingSet, folder: Path, excluded: Exclusions | None) -> tuple[np.ndarray, np.ndarray]:
    """Copies names and vectors in the order of the set. Returns clusters int32 [n] and the sum of all vectors."""
    clusters, total = list[np.ndarray](), np.zeros(embeddings.dim)
    columns = [*COLUMNS, "embedding", "scale"]
    with (folder / "unordered.f16").open("wb") as file, pa.ipc.new_file(str(folder / ROWS), SCHEMA) as rows:
        for batch in embeddings.lines(columns, excluded):
            if batch.num_rows:
                values = unit_vectors(batch)
                total += values.sum(axis=0, dtype=np.float64)
                file.write(values.astype(np.float16).tobytes())
                line = completed(batch)
                rows.write_batch(line)
                clusters.append(line["cluster"].to_numpy())
    if not clusters:
        raise UserError(f"The set in {embeddings.place} has no embeddings to search.")
    return np.concatenate(clusters), total


def _store_in_order(folder: Path, mapped: np.ndarray, assigned: np.ndarray) -> None:
    order = np.argsort(assigned, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    place.tofile(folder / "place.i64")
    assigned.astype(np.int32).tofile(folder / "lists.i32")
    with (folder / "vectors.f16").open("wb") as file:
        for first in range(0, len(order), _BLOCK):
            file.write(mapped[order[first : first + _BLOCK]].tobytes())


def _write_lists(folder: Path, assigned: np.ndarray, centres: np.ndarray, vectors: StoredVectors, codec: str) -> int:
    """Writes the quantised lists and returns their bytes."""
    dim, n = centres.shape[1], len(assigned)
    flat = faiss.IndexFlatIP(dim)
    flat.add(centres)
    index = _quantised(flat, dim, len(centres), codec)
    chosen = np.sort(np.random.default_rng(0).permutation(n)[:_TRAIN])
    index.train(vectors.rows(chosen))
    order = vectors.order
    for first in range(0, n, _BLOCK):
        rows = np.ascontiguousarray(order[first : first + _BLOCK])
        lists = np.ascontiguousarray(assigned[rows], np.int64)
        values = vectors.lines(first, first + len(rows))
        pointers = (faiss.swig_ptr(values), faiss.swig_ptr(rows), faiss.swig_ptr(lists))
        index.add_core(len(rows), *pointers)
    vectors.release()
    faiss.write_index(index, str(folder / LISTS))
    return int(n * index.code_size)


def _quantised(flat: faiss.IndexFlatIP, dim: int, lists: int, codec: str) -> faiss.IndexIVF:
    inner = faiss.METRIC_INNER_PRODUCT
    if codec == "sq8":
        return faiss.IndexIVFScalarQuantizer(flat, dim, lists, faiss.ScalarQuantizer.QT_8bit, inner, False)
    parts = next(parts for parts in range(max(1, dim // 4), 0, -1) if dim % parts == 0)
    index = faiss.IndexIVFPQ(flat, dim, lists, parts, 8, inner)
    index.by_residual = False
    return index


def _codec(codec: Codec, n: int, dim: int) -> str:
    if codec == "auto":
        return "pq" if n * dim > _LARGE else "sq8"
    return codec


def measure(index: NeighbourIndex, target: float) -> dict[str, Any]:
    """Finds the fewest lists to search for the wanted recall: probes, exhaustive, recall_at_10, queries_per_second."""
    count = min(_QUERIES, index.samples)
    rows = np.sort(np.random.default_rng(1).permutation(index.samples)[:count])
    queries = index.vectors.rows(rows)
    k = min(_K, max(1, index.samples - 1))
    exact = _without_self(*exact_search(index.vectors, queries, k + 1), rows, k)

    def reached(probes: int) -> np.ndarray:
        return recalls(_without_self(*index.probed(queries, k + 1, probes), rows, k), exact)

    most, probes = int(index.manifest["lists"]), _fewest(reached, int(index.manifest["lists"]), target)
    found = float(reached(probes).mean())
    exhaustive = probes == most and found < target
    began = time.monotonic()
    _, answers = exact_search(index.vectors, queries, k) if exhaustive else index.probed(queries, k, probes)
    seconds = max(time.monotonic() - began, 1e-9)
    return {
        "probes": probes,
        "exhaustive": exhaustive,
        "recall_at_10": 1.0 if exhaustive else round(found, 4),
        "queries_per_second": round(len(answers) / seconds, 1),
    }


def _fewest(reached: Callable[[int], np.ndarray], most: int, target: float) -> int:
    """The fewest probes that surely reach the target, or `most`. reached(probes): the recall of each query."""

    def surely(probes: int) -> bool:
        found = reached(probes)
        return bool(found.mean() - _SURE * found.std() / len(found) ** 0.5 >= target)

    high = 1
    while high < most and not surely(high):
        high = min(2 * high, most)
    low = high // 2
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if surely(middle) else (middle, high)
    return high


def _without_self(scores: np.ndarray, rows: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """Cosines [q, k] of the answers without the query itself."""
    kept = np.where(rows == own[:, None], -3.0, scores)
    best: np.ndarray = -np.sort(-kept, axis=1)[:, :k]
    return best


def _warn(manifest: dict[str, Any], target: float) -> None:
    if manifest["collapsed"]:
        log.warning(
            "the vectors are nearly the same, as those of a collapsed model: neighbours say little about the images; see `swav health`"
        )
    if manifest["exhaustive"]:
        log.warning(
            "the lists do not reach recall %.3f, so each search compares all %s vectors", target, f"{manifest['samples']:,}"
        )
