"""Does a run that learns from deduplicated and balanced data learn more than one on the data as they are, in equally many steps?

    python benchmarks/curation.py DIR_OF_CIFAR10

CIFAR-10 is made long-tailed (the rarest class has 1/50 of the images of the most frequent one), and 20 % of the images are replaced by
near-copies of others. For each seed: pretrain → embed → duplicates → curate → index → pretrain, by the commands that a user types. The
second run starts from random weights, as the first does. Takes 30 to 40 minutes on 2 cores. Prints one JSON line:

difference: mean of kNN top-1 of the second runs minus that of the first, in points; by_seed: both accuracies;
dropped_copies_share: of the planted near-copies, those that were taken out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RECIPE = str(ROOT / "configs" / "pretrain" / "cifar10_cpu.yaml")
RAREST, COPIES = 1 / 50, 0.2
THRESHOLD = "0.98"


def swav(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "swav_platform", *arguments, "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=folder, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def long_tailed(source: Path, out: Path, first: int, seed: int) -> set[str]:
    """Writes a tar with `first` images of the most frequent class. Returns the keys of the near-copies."""
    random = np.random.default_rng(seed)
    by_class: dict[str, list[bytes]] = {}
    for path in sorted(source.glob("cifar10-train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    by_class.setdefault(member.name.partition("/")[0], []).append(file.read())
    names = sorted(by_class)
    images = []
    for rank, name in enumerate(random.permutation(names).tolist()):
        count = round(min(first, len(by_class[name])) * RAREST ** (rank / (len(names) - 1)))
        images += [(name, data) for data in by_class[name][: max(count, 2)]]
    order = random.permutation(len(images)).tolist()
    copies = round(COPIES * len(images))
    originals, copied = [images[i] for i in order[copies:]], set()
    with tarfile.open(out, "w") as tar:
        for number, (name, data) in enumerate(originals):
            _add(tar, f"{name}/{number:06d}.jpg", data)
        for number in range(copies):
            name, data = originals[int(random.integers(len(originals)))]
            key = f"{name}/copy-{number:06d}"
            copied.add(key)
            _add(tar, f"{key}.jpg", _near_copy(data, random))
    return copied


def _near_copy(data: bytes, random: np.random.Generator) -> bytes:
    """The image a little brighter or darker, shifted by a pixel, and compressed again."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32) * random.uniform(0.95, 1.05)
    shifted = np.roll(pixels, int(random.integers(-1, 2)), axis=int(random.integers(2)))
    out = io.BytesIO()
    Image.fromarray(shifted.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def one(folder: Path, source: Path, seed: int, steps: int, first: int) -> dict[str, Any]:
    planted = long_tailed(source, folder / "tail.tar", first, seed)
    settings = [f"seed={seed}", f"train.steps={steps}"]
    swav(folder, "pretrain", RECIPE, "--data", "tail.tar", "--name", "first", *settings)
    swav(folder, "embed", "first", "--no-thumbnails")
    found = swav(folder, "neighbours", "duplicates", "first", "--threshold", THRESHOLD, "--to", "duplicates.txt")
    swav(folder, "neighbours", "curate", "first", "--exclude", "duplicates.txt", "--to", "weights.parquet")
    swav(folder, "index", "tail.tar", "--out", "curated", "--exclude", "duplicates.txt", "--weights", "weights.parquet")
    swav(folder, "pretrain", RECIPE, "--name", "second", "data.index=curated", *settings)
    scores = []
    for name in ("first", "second"):
        bank, query = (str(source / f"cifar10-{part}-*.tar") for part in ("train", "test"))
        sizes = ("--bank-size", "10000", "--query-size", "2000")
        scores.append(swav(folder, "evaluate", "knn", name, "--bank", bank, "--query", query, *sizes)["knn_top1"])
    dropped = {line.rpartition("\t")[2] for line in (folder / "duplicates.txt").read_text().splitlines()}
    return {
        "as_it_is": scores[0],
        "curated": scores[1],
        "samples_to_drop": found["samples_to_drop"],
        "dropped_copies_share": round(len(dropped & planted) / len(planted), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=5000, help="images of the most frequent class")
    options = parser.parse_args()
    results = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as name:
            results.append(one(Path(name), options.cifar10.resolve(), seed, options.steps, options.first))
        print(json.dumps(results[-1]), file=sys.stderr)
    gains = [result["curated"] - result["as_it_is"] for result in results]
    print(json.dumps({"difference": round(float(np.mean(gains)), 2), "by_seed": results, "steps": options.steps}))


if __name__ == "__main__":
    main()
