"""How much of the speed of the bare runtime does `swav embed` reach, and does a killed job write the same set?

    python benchmarks/embed.py DIR_OF_CIFAR10 DIR_OF_IMAGENET_SAMPLE [--images 4000] [--kills 10] [--outage 30]

Encoders have random weights: the recipe's tiny network for CIFAR-10, a ResNet-50 at 224 px for ImageNet. The loop reads, decodes and
preprocesses images one after the other with the platform's own functions and calls the same runtime in the same batches. Takes about
5 minutes on 2 cores. Prints one JSON line:

vs_encoder_loop: images a second of `swav embed` / of the loop, the lower of both data sets; identical: whether the set of a job that got
SIGKILL `kills` times, then ran with 1, 2 and 3 Ray actors, equals the unbroken one. outage: the same for a job whose S3 server was away
for so many seconds. That server has the images and gets the set. said: whether the job told that it waits.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from swav_platform.cluster.batch.embed import on_cluster
from swav_platform.config import Config, ImagePolicy, Model, ViewGroup
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.samples import read_samples
from swav_platform.data.sets.write import begin
from swav_platform.evaluation.embed import embed, embed_job
from swav_platform.evaluation.parts import BATCH, EmbedJob, usual_runtime
from swav_platform.images.decode import Refused, decode
from swav_platform.models.encoders import build_encoder
from swav_platform.models.heads import projection_head
from swav_platform.models.inference import load_for_inference
from swav_platform.models.package import preprocess, save_package
from swav_platform.runs.storage import storage_of
from tests.s3 import s3_server

REPEATS = 3


def package(folder: Path, model: Model, size: int) -> Path:
    torch.manual_seed(0)
    encoder = build_encoder(model)
    dim: Any = encoder.feature_dim
    network = torch.nn.ModuleDict(
        {
            "encoder": encoder,
            "projection_head": projection_head(dim, model.projection_hidden, model.projection_dim),
            "prototypes": torch.nn.Linear(model.projection_dim, 100, bias=False),
        }
    )
    settings = Config(model=model, views={"all": ViewGroup(size=size, count=2, scale=(0.3, 1.0))})
    return save_package(folder, network.state_dict(), settings, name="m", run="r", run_id=None, index_digest="i", codec="c")


def loop(folder: Path, index: Index, images: int) -> float:
    """Images a second of the bare runtime in a loop."""
    size = json.loads((folder / "model.json").read_text())["input_size"]
    model, policy = load_for_inference(folder, usual_runtime(size, "cpu")), ImagePolicy()
    began = time.monotonic()
    for first in range(0, images, BATCH):
        pixels = []
        contents = read_samples(index.lines(range(first, min(first + BATCH, images))), max_bytes=policy.max_bytes)
        for data in contents.values():
            if isinstance(data, bytes):
                try:
                    pixels.append(preprocess(decode(data, policy), size))
                except Refused:
                    continue
        model.encode(torch.stack(pixels))
    return images / (time.monotonic() - began)


def speed(folder: Path, shards: list[Path], model: Model, size: int, images: int) -> dict[str, float]:
    made = package(folder / "model", model, size)
    build_index([str(path) for path in shards], folder / "index")
    index = Index.open(folder / "index")
    ours, theirs = [], []
    for number in range(REPEATS):
        theirs.append(loop(made, index, min(images, index.samples)))
        ours.append(embed(embed_job(made, index, folder / f"set-{number}", ImagePolicy()))["images_per_second"])
    return {"vs_encoder_loop": round(max(ours) / max(theirs), 3), "images_per_second": max(ours), "loop": round(max(theirs), 1)}


def identical(job: EmbedJob, whole: Path, kills: int) -> bool:
    seeded = random.Random(0)
    for _ in range(kills):
        after = seeded.randrange(job.recipe.samples // (2 * kills))
        script = (
            "import os, pickle, signal, sys; from swav_platform.evaluation.embed import embed; job = pickle.load(sys.stdin.buffer); "
            "first = []; embed(job, progress=lambda done, total: "
            f"(first or first.append(done)) or (done - first[0] > {after} and os.kill(os.getpid(), {signal.SIGKILL})))"
        )
        subprocess.run([sys.executable, "-c", script], input=pickle.dumps(job), env=os.environ, check=False)
    for workers in (1, 2):
        there = begin(storage_of(job.target), job.recipe)
        missing = [number for number in range(len(job.recipe.parts)) if number not in there]
        parts = on_cluster(workers)(job, missing, lambda samples: None)
        list(islice(parts, min(2, len(missing))))
        parts.close()  # type: ignore[attr-defined]
    embed(job, on_cluster(3))
    stores = [storage_of(job.target), storage_of(whole)]
    names = [set(store.entries()) for store in stores]
    return names[0] == names[1] and all(stores[0].get(name) == stores[1].get(name) for name in names[0])


def outage(made: Path, shards: list[Path], folder: Path, seconds: float) -> dict[str, Any]:
    """A job whose S3 server dies when a third is done, and comes back after so many seconds."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("swav").addHandler(handler)
    with s3_server(folder / "s3") as server:
        bucket = server.store("embed")
        for shard in shards:
            bucket.put(shard.name, shard.read_bytes())
        build_index([f"s3://embed/{shard.name}" for shard in shards], folder / "index")
        index, stopped = Index.open(folder / "index"), list[float]()
        embed(embed_job(made, index, folder / "set", ImagePolicy()))

        def stop(done: int, total: int) -> None:
            if not stopped and done >= total // 3:
                stopped.append(time.monotonic())
                server.stop()
                threading.Timer(seconds, server.restore).start()

        report = embed(embed_job(made, index, "s3://embed/set", ImagePolicy()), progress=stop)
        stores = [storage_of(place) for place in (folder / "set", "s3://embed/set")]
        names = [set(store.entries()) for store in stores]
        same = names[0] == names[1] and all(stores[0].get(name) == stores[1].get(name) for name in names[0])
    return {
        "seconds": seconds,
        "identical": same,
        "samples": report["samples"],
        "took": round(time.monotonic() - stopped[0], 1),
        "said": any("waiting for s3://" in line for line in said),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("imagenet", type=Path)
    parser.add_argument("--images", type=int, default=4000, help="of CIFAR-10")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--outage", type=float, default=30.0, help="seconds")
    options = parser.parse_args()
    tiny = Model(name="resnet_tiny", stem="small", stem_stride=2, projection_hidden=512, projection_dim=128)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = sorted(options.cifar10.glob("cifar10-train-*.tar"))
        small = speed(folder / "small", train[: max(1, options.images * len(train) // 50_000 + 1)], tiny, 32, options.images)
        large = speed(folder / "large", sorted(options.imagenet.glob("*.tar")), Model(name="resnet50"), 224, options.images)
        job = embed_job(folder / "small" / "model", Index.open(folder / "small" / "index"), folder / "killed", ImagePolicy())
        same = identical(job, folder / "small" / "set-0", options.kills)
        away = outage(folder / "small" / "model", train[:1], folder / "outage", options.outage)
    lower = min(small["vs_encoder_loop"], large["vs_encoder_loop"])
    told = {"vs_encoder_loop": lower, "cifar10": small, "imagenet": large, "kills": options.kills, "identical": same}
    print(json.dumps({**told, "outage": away}))


if __name__ == "__main__":
    main()
