"""How fast, exact and small is the neighbour index, against exact search and HNSW of faiss with the same threads and batches?

    python benchmarks/neighbours.py --cache CACHE [--count 1000000] [--hnsw-count COUNT]

CACHE is made by benchmarks/crop_vectors.py. Takes about 5 minutes for a million vectors on 2 cores, most of it for HNSW. Prints one
JSON line:

vs_exact: queries a second of the index / of exact search; recall_at_10; build_vs_hnsw: seconds of HNSW (M 16, efConstruction 80) / of
the index; bytes_over_quantised: memory of a process that searches / bytes of the quantised vectors; growth: the index at a tenth of
the size; collapsed: whether a collapsed set is answered right.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from crop_vectors import HELD_OUT, crop_vectors

from swav_platform.data.sets.read import EmbeddingSet
from swav_platform.neighbours.build import build
from swav_platform.neighbours.index import open_neighbours
from tests.neighbours.conftest import write_set

BATCH, K = 256, 10


def pace(search: Any, queries: np.ndarray) -> float:
    """Queries a second, of the fastest of the batches: other programs of the machine slow batches down, nothing speeds them up."""
    best = float("inf")
    for first in range(0, len(queries) - BATCH + 1, BATCH):
        began = time.perf_counter()
        search(queries[first : first + BATCH])
        best = min(best, time.perf_counter() - began)
    return BATCH / best


def measured(vectors: np.ndarray, clusters: np.ndarray, queries: np.ndarray, folder: Path) -> dict[str, Any]:
    made: EmbeddingSet = write_set(folder / "set", vectors, clusters)
    report = build(made, folder / "index")
    index = open_neighbours(folder / "index")
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(np.concatenate(list(made.vectors())))  # as the set has them: of unit length, in float16
    some = queries[: 4 * BATCH]
    true = exact.search(some, K)[1]
    found = index.search_rows(some, K)[1]
    recall = np.mean([len(set(a) & set(b)) for a, b in zip(true.tolist(), found.tolist(), strict=True)]) / K
    ours = pace(lambda batch: index.search_rows(batch, K), queries)
    theirs = pace(lambda batch: exact.search(batch, K), some)
    resident = json.loads(
        subprocess.run([sys.executable, __file__, "--resident", str(folder / "index")], stdout=subprocess.PIPE, check=True).stdout
    )
    return {
        "vs_exact": round(ours / theirs, 1),
        "recall_at_10": round(float(recall), 4),
        "queries_per_second": round(ours),
        "exact_queries_per_second": round(theirs, 1),
        "build_seconds": report["seconds"],
        "lists": report["lists"],
        "probes": report["probes"],
        "bytes_over_quantised": round(resident / report["bytes"], 3),
    }


def resident(folder: Path) -> int:
    """Bytes by which a process grows that opens an index and searches all over it."""
    warm = np.random.default_rng(0).normal(size=(BATCH, 16)).astype(np.float32)
    faiss.knn(warm, warm, K)
    before = _memory()
    index = open_neighbours(folder)
    random = np.random.default_rng(1)
    for _ in range(64):
        index.search_rows(index.vectors.rows(random.integers(0, index.samples, BATCH)), K)
    return _memory() - before


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def hnsw_seconds(vectors: np.ndarray) -> float:
    index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    began = time.monotonic()
    index.add(vectors.astype(np.float32))
    return time.monotonic() - began


def collapsed(folder: Path) -> bool:
    """Whether a set whose vectors are nearly the same is answered as exact search answers it."""
    random = np.random.default_rng(0)
    vectors = np.ones((20_000, 64)) + 0.002 * random.normal(size=(20_000, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    made = write_set(folder / "set", vectors, np.zeros(len(vectors), np.int32))
    build(made, folder / "index")
    index = open_neighbours(folder / "index")
    stored = np.concatenate(list(made.vectors()))
    scores = np.sort(stored[:200] @ stored.T, axis=1)[:, ::-1][:, :K]
    return bool(np.abs(index.search_rows(stored[:200], K)[0] - scores).mean() < 2e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--hnsw-count", type=int, help="vectors of both builds that are compared (default: all)")
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident:
        print(resident(options.resident))
        return
    crops = crop_vectors(options.cache, options.count)
    vectors, clusters, queries = (
        crops.vectors[:-HELD_OUT],
        crops.clusters[:-HELD_OUT],
        crops.vectors[-HELD_OUT:].astype(np.float32),
    )
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as name:
        small = measured(vectors[: options.count // 10], clusters[: options.count // 10], queries, Path(name) / "small")
        result = measured(vectors, clusters, queries, Path(name) / "all")
        right = collapsed(Path(name) / "collapsed")
        count = options.hnsw_count or options.count
        ours = result["build_seconds"]
        if count < options.count:
            part = write_set(Path(name) / "part" / "set", vectors[:count], clusters[:count])
            ours = build(part, Path(name) / "part" / "index")["seconds"]
    theirs = hnsw_seconds(vectors[:count])
    result |= {
        "build_vs_hnsw": round(theirs / ours, 1),
        "hnsw_seconds": round(theirs, 1),
        "count": options.count,
        "growth": small,
    }
    print(json.dumps({**result, "collapsed": right, "threads": faiss.omp_get_max_threads()}))


if __name__ == "__main__":
    main()
