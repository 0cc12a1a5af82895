"""How long does it take to find near-duplicates, and are all found?

    python benchmarks/duplicates.py --cache CACHE [--count 1000000] [--threshold 0.99]

CACHE is made by benchmarks/crop_vectors.py. Two of a hundred vectors are planted near-copies of others. Prints one JSON line:

seconds: index and search; recall: of the pairs that exhaustive search finds for a sample of vectors, those that were found; planted_recall:
the same for planted pairs; precision: found pairs of the sample that exhaustive search confirms; planted_share: planted ones among them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from crop_vectors import crop_vectors

from swav_platform.neighbours.build import build
from swav_platform.neighbours.index import open_neighbours
from swav_platform.neighbours.pairs import groups
from tests.neighbours.conftest import write_set

PLANTED = 0.02
_SAMPLE = 1000


def with_copies(vectors: np.ndarray, threshold: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Replaces the last 2 % by near-copies of others. Returns the vectors and the original int64 of each copy."""
    n = len(vectors)
    count = round(PLANTED * n)
    originals = random.permutation(n - count)[:count]
    copies = vectors[originals].astype(np.float32)
    noise = random.normal(size=copies.shape)
    noise -= (noise * copies).sum(axis=1, keepdims=True) * copies
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    cosines = random.uniform(threshold + 0.1 * (1 - threshold), 1.0, (count, 1))
    vectors = vectors.copy()
    vectors[n - count :] = cosines * copies + np.sqrt(1 - cosines**2) * noise
    return vectors, originals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--threshold", type=float, default=0.99)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    crops = crop_vectors(options.cache, options.count)
    vectors, originals = with_copies(crops.vectors[: options.count], options.threshold, random)
    first_copy = options.count - len(originals)
    clusters = crops.clusters[: options.count].copy()
    clusters[first_copy:] = clusters[originals]
    sample = np.sort(
        np.concatenate(
            [random.permutation(first_copy)[: _SAMPLE // 2], first_copy + random.permutation(len(originals))[: _SAMPLE // 2]]
        )
    )
    chosen = np.zeros(options.count, bool)
    chosen[sample] = True
    heard: list[np.ndarray] = []

    def hear(first: np.ndarray, second: np.ndarray) -> None:
        kept = chosen[first] | chosen[second]
        heard.append(np.stack([first[kept], second[kept]]))

    with tempfile.TemporaryDirectory() as name:
        made = write_set(Path(name) / "set", vectors, clusters)
        began = time.monotonic()
        build(made, Path(name) / "index")
        index = open_neighbours(Path(name) / "index")
        found = groups(index.vectors, options.threshold, heard=hear)
        seconds = time.monotonic() - began
        pairs = {(min(a, b), max(a, b)) for a, b in np.concatenate(heard, axis=1).T.tolist()}
        true, planted = set[tuple[int, int]](), set[tuple[int, int]]()
        queries = index.vectors.rows(sample)
        for first in range(0, options.count, 65_536):
            block = np.arange(first, min(first + 65_536, options.count))
            near = np.argwhere(queries @ index.vectors.rows(block).T >= options.threshold)
            true |= {(min(a, b), max(a, b)) for a, b in ((int(sample[q]), first + int(r)) for q, r in near) if a != b}
        for copy in sample[sample >= first_copy].tolist():
            planted.add((int(originals[copy - first_copy]), copy))
    planted &= true
    result = {
        "seconds": round(seconds, 1),
        "recall": round(len(pairs & true) / max(len(true), 1), 4),
        "planted_recall": round(len(pairs & planted) / max(len(planted), 1), 4),
        "precision": round(len(pairs & true) / max(len(pairs), 1), 4),
        "planted_share": round(len(pairs & planted) / max(len(pairs), 1), 4),
        "pairs": found.pairs,
        "lists": found.lists,
        "largest_group_share": round(float(np.bincount(found.group).max() / options.count), 4),
        "threshold": options.threshold,
        "count": options.count,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
