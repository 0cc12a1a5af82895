"""Swaps model and embeddings of a running service under mixed load, a twentieth of it hostile, and checks every answer.

    python benchmarks/serve_swaps.py [--swaps 30] [--seconds 300]

One JSON line: `wrong` answers (each is compared with the offline vector of the version that it names), `broken` connections,
`undeclared_5xx` (other than 503), `swapped`, `memory_growth_mb` (resident, the last swaps against the first ones), `answers`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from http_load import Connection, unique
from serve import make_package, read_images, started

from swav_platform.config import ImagePolicy
from swav_platform.images.decoding.decode import decode
from swav_platform.models.inference import load_for_inference
from swav_platform.models.package import preprocess

CLIENTS, IMAGES, PORT = 12, 40, 8781
HOSTILE = (b"no image", b"\xff\xd8\xff\xe0" + bytes(5000), b"\x89PNG\r\n\x1a\n" + bytes(200), b"GIF89a" + b"\xff" * 300)


def other_version(package: Path, folder: Path) -> Path:
    """The package with its features in the opposite order, so that each vector tells its version."""
    shutil.copytree(package, folder)
    path = folder / "head.safetensors"
    head = safetensors.torch.load_file(path)
    last = max(name for name, weight in head.items() if name.startswith("projection.") and weight.ndim == 2)
    head[last] = head[last].flip(0).contiguous()
    path.write_bytes(safetensors.torch.save(head))
    return folder


def write_set(package: Path, folder: Path, images: list[bytes]) -> tuple[str, np.ndarray]:
    """An embedding set of the images. Returns the model's digest and the projections."""
    model = load_for_inference(package)
    pixels = torch.stack([preprocess(decode(image, ImagePolicy()), model.input_size) for image in images])
    features, projections = model.encode(pixels)
    clusters, scores, _ = model.assign(projections, 1)
    columns = {
        "key": [f"{n:04d}" for n in range(len(images))],
        "shard": ["a.tar"] * len(images),
        "sample": pa.array(range(len(images)), pa.int64()),
        "cluster": pa.array(clusters[:, 0], pa.int32()),
        "score": pa.array(scores[:, 0], pa.float32()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(features.astype(np.float16).ravel()), features.shape[1]),
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "embeddings.parquet")
    (folder / "embeddings.json").write_text(json.dumps({"model": model.digest, "samples": len(images), "dim": features.shape[1]}))
    return model.digest, projections


class Judge:
    """Counts what comes back."""

    def __init__(self, truth: dict[str, np.ndarray]) -> None:
        self.truth = truth
        self.answers = self.wrong = self.broken = self.undeclared = 0

    def image(self, number: int, status: int, body: bytes) -> None:
        self._status(status)
        if status == 200:
            told = json.loads(body)
            found = np.array(told["items"][0]["embedding"], np.float32)
            self.wrong += float(found @ self.truth[told["model"]["digest"]][number]) < 0.9999

    def hostile(self, status: int) -> None:
        self._status(status)
        self.wrong += status == 200

    def neighbours(self, number: int, status: int, body: bytes) -> None:
        self._status(status)
        if status == 200:
            told = json.loads(body)
            self.wrong += told["items"][0]["neighbors"][0]["key"] != f"{number:04d}"

    def _status(self, status: int) -> None:
        self.answers += 1
        self.broken += status == 0
        self.undeclared += status >= 500 and status != 503


async def client(judge: Judge, images: list[bytes], end: float, seed: int) -> None:
    draw, connection = random.Random(seed), Connection("127.0.0.1", PORT)
    while time.perf_counter() < end:
        number = draw.randrange(len(images))
        body = next(unique([images[number]]))
        if draw.random() < 0.05:
            judge.hostile((await connection.post("/v1/embeddings", draw.choice(HOSTILE))).status)
        elif draw.random() < 0.3:
            reply = await connection.post("/v1/neighbors?k=1&thumbnails=false", body)
            judge.neighbours(number, reply.status, reply.body)
        else:
            reply = await connection.post("/v1/embeddings?kind=projection", body)
            judge.image(number, reply.status, reply.body)
    connection.close()


async def run(
    judge: Judge, images: list[bytes], versions: list[Path], served: Path, swaps: int, seconds: float, process: psutil.Process
) -> dict[str, Any]:
    end = time.perf_counter() + seconds
    clients = [asyncio.create_task(client(judge, images, end, seed)) for seed in range(CLIENTS)]
    control, results, memory = Connection("127.0.0.1", PORT), list[str](), list[int]()
    for swap in range(swaps):
        await asyncio.sleep(max(0.0, seconds / (swaps + 1) - 1))
        aside = served.with_name("next")
        shutil.copytree(versions[(swap + 1) % 2], aside)
        shutil.rmtree(served)
        aside.rename(served)
        reply = await control.post("/v1/models/reload", b"")
        results.append(json.loads(reply.body)["models"][0]["result"] if reply.status == 200 else str(reply.status))
        memory.append(process.memory_info().rss)
    await asyncio.gather(*clients)
    part = max(1, swaps // 4)
    growth = (np.median(memory[-part:]) - np.median(memory[part : 2 * part] or memory[:part])) / 1e6
    return {
        "wrong": judge.wrong,
        "broken": judge.broken,
        "undeclared_5xx": judge.undeclared,
        "swapped": results.count("swapped"),
        "swaps": swaps,
        "memory_growth_mb": round(float(growth), 1),
        "memory_mb": round(memory[-1] / 1e6),
        "answers": judge.answers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=290.0)
    parser.add_argument("--data", default="../shared/data/imagenet-sample/*.tar")
    options = parser.parse_args()
    images = read_images(options.data)[:IMAGES]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        first = make_package(folder / "first", options.encoder, options.size)
        versions = [first, other_version(first, folder / "second")]
        made = [write_set(version, folder / "made" / str(number), images) for number, version in enumerate(versions)]
        for number, (digest, _) in enumerate(made):
            shutil.copytree(folder / "made" / str(number), folder / "sets" / digest)
        served = Path(shutil.copytree(first, folder / "served"))
        command = [sys.executable, "-m", "swav_platform", "serve", str(served), "--port", str(PORT), "--runtime", "torch"]
        command += ["--embeddings", str(folder / "sets"), "--json"]
        with started(command, PORT, images[0]):
            process = next(child for child in psutil.Process().children() if "serve" in child.cmdline())
            report = asyncio.run(run(Judge(dict(made)), images, versions, served, options.swaps, options.seconds, process))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
