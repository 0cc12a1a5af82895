"""Vectors for the benchmarks of search and deduplication: random crops of CIFAR-10, projected by an encoder of the CPU recipe.

    python benchmarks/crop_vectors.py DIR_OF_SHARDS --cache CACHE

Trains the encoder (3 minutes for 500 steps on 2 quiet cores), embeds the crops (about 4,000 a second) and keeps both in CACHE, which
the other benchmarks read. It prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from swav_platform.config import ImagePolicy
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.evaluation.features import batches
from swav_platform.images.views.photometric import MEAN, STD
from swav_platform.models.inference import InferenceModel, load_for_inference

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = 2048  # crops that are not in the set: queries
_BATCH = 512
_SIDE = 32


class Crops(NamedTuple):
    """vectors: float16 [n + HELD_OUT, 128] of unit length; clusters: int32 [n + HELD_OUT], the nearest prototypes."""

    vectors: np.ndarray
    clusters: np.ndarray


def crop_vectors(cache: Path, count: int, shards: Path | None = None, steps: int = 500) -> Crops:
    """The cached vectors, which are made if `shards` is given. Raises FileNotFoundError if there are too few."""
    path = cache / f"crops-{count}.npz"
    if not path.is_file():
        larger = [p for p in cache.glob("crops-*.npz") if int(p.stem.split("-")[1]) >= count]
        if larger:
            found = np.load(min(larger, key=lambda p: int(p.stem.split("-")[1])))
            return Crops(found["vectors"][: count + HELD_OUT], found["clusters"][: count + HELD_OUT])
        if shards is None:
            raise FileNotFoundError(f"{path}: run benchmarks/crop_vectors.py DIR_OF_SHARDS --cache {cache} --count {count} first")
        cache.mkdir(parents=True, exist_ok=True)
        vectors, clusters = _embedded(
            load_for_inference(_trained(cache, shards, steps)), _pictures(cache, shards), count + HELD_OUT
        )
        np.savez(path, vectors=vectors, clusters=clusters)
    found = np.load(path)
    return Crops(found["vectors"], found["clusters"])


def _trained(cache: Path, shards: Path, steps: int) -> Path:
    if not (cache / "crops" / "model" / "model.json").is_file():
        command = [sys.executable, "-m", "swav_platform.training", str(ROOT / "configs" / "pretrain" / "cifar10_cpu.yaml")]
        command += ["--data", str(shards / "cifar10-train-*.tar"), "--name", "crops", "--out", str(cache), "--resume"]
        subprocess.run([*command, f"train.steps={steps}"], check=True, stdout=subprocess.DEVNULL)
    return cache / "crops" / "model"


def _pictures(cache: Path, shards: Path) -> torch.Tensor:
    """float32 [m, 3, 32, 32], 0 … 1."""
    build_index([str(path) for path in sorted(shards.glob("cifar10-train-*.tar"))], cache / "index")
    index = Index.open(cache / "index")
    images = [image for batch in batches(index, range(index.samples), ImagePolicy()) for image in batch.images]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def _embedded(model: InferenceModel, pictures: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    vectors, clusters = np.empty((count, model.projection_dim), np.float16), np.empty(count, np.int32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for first in range(0, count, _BATCH):
        random = torch.Generator().manual_seed(first)
        size = min(_BATCH, count - first)
        chosen = torch.randint(len(pictures), (size,), generator=random)
        projections = model.encode((_crops(pictures[chosen], random) - mean) / std).projections
        vectors[first : first + size] = projections
        clusters[first : first + size] = model.scores(projections).argmax(axis=1)
    return vectors, clusters


def _crops(pictures: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Crops of 40 to 100 % of the area, half of them flipped, with other brightness."""
    n = len(pictures)
    side = (0.4 + 0.6 * torch.rand(n, generator=random)).sqrt()
    flip = torch.where(torch.rand(n, generator=random) < 0.5, -1.0, 1.0)
    shift = (2 * torch.rand(2, n, generator=random) - 1) * (1 - side)
    zero = torch.zeros(n)
    rows = torch.stack([torch.stack([side * flip, zero, shift[0]], 1), torch.stack([zero, side, shift[1]], 1)], 1)
    grid = affine_grid(rows, [n, 3, _SIDE, _SIDE], align_corners=False)
    seen = grid_sample(pictures, grid, align_corners=False, padding_mode="reflection")
    return (seen * (0.6 + 0.8 * torch.rand(n, 1, 1, 1, generator=random))).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    began = time.monotonic()
    crops = crop_vectors(options.cache, options.count, options.shards, options.steps)
    sizes = np.bincount(crops.clusters) / len(crops.clusters)
    entropy = float(-(sizes[sizes > 0] * np.log(sizes[sizes > 0])).sum() / math.log(len(sizes)))
    told = {"count": options.count, "dim": crops.vectors.shape[1], "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps({**told, "cluster_entropy_share": round(entropy, 3)}))


if __name__ == "__main__":
    main()
