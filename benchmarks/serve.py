"""Measures the service against a plain FastAPI handler and against its own encoder in a bare loop.

    python benchmarks/serve.py [--encoder resnet50] [--size 224] [--seconds 6] [--data PATTERN]

JPEG bodies, each unknown to the cache, at concurrency 1, 8, 32 and 128, decoding included. One JSON line:
`vs_plain_fastapi`, `int8_vs_plain_fastapi`: highest images/s over that of a plain handler with eager channels-last torch.
`vs_encoder_loop`: over the same runtime in a loop at its best batch. `latency_at_1_over_encode`: median at concurrency 1
over decoding and encoding one image. `p99_at_70_over_batch`: 99th percentile at 70 % of capacity over one best batch.
`goodput_at_3x`: answered share of the capacity at three times the load; `refused_within_100ms_share`: of its refusals.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from http_load import Connection, closed_loop, open_loop, unique

from swav_platform.config import Config, ImagePolicy
from swav_platform.images.decoding.decode import decode
from swav_platform.methods.build import build_method
from swav_platform.models.encoders import build_encoder
from swav_platform.models.exports.onnx import export_int8
from swav_platform.models.inference import InferenceModel, load_for_inference
from swav_platform.models.package import preprocess, save_package

CLIENTS = (1, 8, 32, 128)
PLAIN = """
import sys, torch, uvicorn
from pathlib import Path
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from swav_platform.config import ImagePolicy
from swav_platform.images.decoding.decode import decode
from swav_platform.models.package import load_package, preprocess
package = load_package(Path(sys.argv[1]))
encoder, size = package.encoder.to(memory_format=torch.channels_last), package.meta["input_size"]
app = FastAPI()
@torch.inference_mode()
def embed(data):
    pixels = preprocess(decode(data, ImagePolicy()), size)[None].contiguous(memory_format=torch.channels_last)
    return torch.nn.functional.normalize(encoder(pixels), dim=1)[0].tolist()
@app.post("/v1/embeddings")
async def embeddings(request: Request):
    return {"embedding": await run_in_threadpool(embed, await request.body())}
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def make_package(folder: Path, encoder: str, size: int) -> Path:
    views = {"large": {"size": size, "count": 2, "scale": (0.14, 1)}}
    settings = Config.model_validate({"views": views, "model": {"name": encoder}})
    network = build_method(settings).modules(build_encoder(settings.model, 1))
    names: dict[str, Any] = {"name": "bench", "run": "bench", "run_id": None, "index_digest": "", "codec": ""}
    return save_package(folder, network.state_dict(), settings, **names)


def read_images(pattern: str) -> list[bytes]:
    found = []
    for name in sorted(glob(pattern)):
        with tarfile.open(name) as tar:
            found += [tar.extractfile(m).read() for m in tar if m.name.lower().endswith((".jpg", ".jpeg"))]  # type: ignore[union-attr]
    good = [image for image in found if image[:3] == b"\xff\xd8\xff" and _decodes(image)]
    if not good:
        sys.exit(f"no JPEG in {pattern}")
    return good


def _decodes(image: bytes) -> bool:
    try:
        decode(image, ImagePolicy())
    except Exception:
        return False
    return True


@contextmanager
def started(command: list[str], port: int, image: bytes) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    try:
        asyncio.run(_answers(process, port, image))
        yield
    finally:
        process.terminate()
        process.wait(30)


async def _answers(process: subprocess.Popen[bytes], port: int, image: bytes) -> None:
    connection = Connection("127.0.0.1", port)
    while process.poll() is None:
        if (await connection.post("/v1/embeddings", image)).status == 200:
            connection.close()
            return
        await asyncio.sleep(0.2)
    sys.exit(f"the service ended with {process.returncode}")


def loop_rates(model: InferenceModel, images: list[bytes], seconds: float) -> dict[int, float]:
    """Images per second of decoding and encoding in a bare loop, by batch size."""
    rates = {}
    for size in (1, 4, 8, 16, 32):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds or not done:
            batch = [images[(done + i) % len(images)] for i in range(size)]
            model.encode(torch.stack([preprocess(decode(data, ImagePolicy()), model.input_size) for data in batch]))
            done += size
        rates[size] = done / (time.perf_counter() - start)
    return rates


def saturate(port: int, images: list[bytes], seconds: float) -> dict[int, tuple[float, float]]:
    """Images per second and median latency by number of clients."""
    asyncio.run(closed_loop("127.0.0.1", port, "/v1/embeddings", unique(images), 4, min(2.0, seconds)))
    loads = {
        clients: asyncio.run(closed_loop("127.0.0.1", port, "/v1/embeddings", unique(images), clients, seconds))
        for clients in CLIENTS
    }
    return {clients: (load.rate, load.quantile(0.5)) for clients, load in loads.items()}


def overload(port: int, images: list[bytes], capacity: float, seconds: float) -> dict[str, float]:
    draw = random.Random(0).expovariate
    calm = asyncio.run(open_loop("127.0.0.1", port, "/v1/embeddings", unique(images), 0.7 * capacity, 2 * seconds, draw))
    rush = asyncio.run(open_loop("127.0.0.1", port, "/v1/embeddings", unique(images), 3.0 * capacity, 2 * seconds, draw))
    refused = [reply.seconds for reply in rush.replies if reply.status == 503]
    # answers that come after the load ends count with the time that they took
    longest = max((reply.seconds for reply in rush.replies), default=0.0)
    return {
        "p99_at_70": calm.quantile(0.99),
        "goodput_at_3x": len(rush.good) / (rush.seconds + longest) / capacity,
        "refused_within_100ms_share": float(np.mean([seconds <= 0.1 for seconds in refused])) if refused else 1.0,
        "broken": float(sum(reply.status not in (200, 503) for reply in rush.replies)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--data", default="../shared/data/imagenet-sample/*.tar")
    parser.add_argument("--port", type=int, default=8765)
    options = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    images = read_images(options.data)
    with tempfile.TemporaryDirectory() as scratch:
        package = make_package(Path(scratch) / "model", options.encoder, options.size)
        sample = [preprocess(decode(data, ImagePolicy()), options.size).numpy() for data in images[:56]]
        export_int8(package, np.stack(sample))
        report = measure(package, images, options.seconds, options.port)
    print(json.dumps(report))


def measure(package: Path, images: list[bytes], seconds: float, port: int) -> dict[str, Any]:
    with started([sys.executable, "-c", PLAIN, str(package), str(port)], port, images[0]):
        plain = saturate(port, images, seconds)
    swav = [sys.executable, "-m", "swav_platform", "serve", str(package), "--json"]
    with started([*swav, "--port", str(port + 1), "--runtime", "int8"], port + 1, images[0]):
        small = saturate(port + 1, images, seconds)
    model = load_for_inference(package, "auto")  # the service takes the same from the cache
    rates = loop_rates(model, images, seconds / 2)
    with started([*swav, "--port", str(port + 2)], port + 2, images[0]):
        ours = saturate(port + 2, images, seconds)
        capacity = max(rate for rate, _ in ours.values())
        told = overload(port + 2, images, capacity, seconds)
    best = max(rates, key=lambda size: rates[size])
    highest = max(rate for rate, _ in plain.values())
    return {
        "vs_plain_fastapi": round(capacity / highest, 2),
        "int8_vs_plain_fastapi": round(max(rate for rate, _ in small.values()) / highest, 2),
        "vs_encoder_loop": round(capacity / rates[best], 2),
        "latency_at_1_over_encode": round(ours[1][1] * rates[1], 2),
        "p99_at_70_over_batch": round(told["p99_at_70"] * rates[best] / best, 2),
        "goodput_at_3x": round(told["goodput_at_3x"], 2),
        "refused_within_100ms_share": round(told["refused_within_100ms_share"], 3),
        "broken_at_3x": int(told["broken"]),
        "runtime": model.runtime.name,
        "best_batch": best,
        "images_per_second": {
            "plain": {n: round(rate, 1) for n, (rate, _) in plain.items()},
            "ours": {n: round(rate, 1) for n, (rate, _) in ours.items()},
            "int8": {n: round(rate, 1) for n, (rate, _) in small.items()},
            "loop": {n: round(rate, 1) for n, rate in rates.items()},
        },
    }


if __name__ == "__main__":
    main()
