"""Measures learning on a GPU: SwAV with multi-crop, ResNet-18, CIFAR-10, configs/pretrain/cifar10_gpu.yaml.

    python benchmarks/cifar10_gpu.py pack DIR_OF_SHARDS FILE
    python benchmarks/cifar10_gpu.py train FILE RUN [key=value ...] [--seconds 540] [--device cuda]

`pack` writes the bytes and labels of all images to FILE. DIR_OF_SHARDS holds cifar10-train-*.tar and cifar10-test-*.tar with
keys `<class>/<id>`. `train` resumes RUN if it exists and stops at the first checkpoint after --seconds. It keeps all images on
the device and crops views there.

Prints one JSON line: minutes of training so far, and kNN accuracy at 8, 16 and 24 minutes and after the last step. kNN uses
k=200, temperature 0.1, all 50,000 training images as bank and all 10,000 test images as queries.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from swav_platform.config import Config, load
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.data.order.plan import Plan, PlanSpec
from swav_platform.data.samples import read_samples
from swav_platform.evaluation.features import Features
from swav_platform.evaluation.knn import knn_top1
from swav_platform.images.views import params, photometric
from swav_platform.images.views.randomness import uniforms
from swav_platform.methods.comm import LocalComm
from swav_platform.models.encoders import build_encoder
from swav_platform.rows.layout import Row, RowLayout
from swav_platform.runs.storage import Place
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.loop import train

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "pretrain" / "cifar10_gpu.yaml"
MARKS = (8, 16, 24)  # minutes
TOGETHER = 4  # rows per batch of views


class SliceOver(Exception):
    """The time of this call is over, and a checkpoint has just been written."""


def pack(shards: Path, file: Path) -> None:
    """Writes bytes, sizes and labels of the images of both splits to `file` (npz)."""
    columns: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        folder = file.parent / f".index-{part}"
        build_index(expand([str(shards / f"cifar10-{part}-*.tar")]), folder, label="folder")
        index = Index.open(folder)
        data: list[bytes] = []
        labels: list[str] = []
        for start in range(0, index.samples, 1000):
            lines = index.lines(range(start, min(start + 1000, index.samples)))
            found = read_samples(lines)
            data += [found[line.number] for line in lines]  # type: ignore[misc]
            labels += [str(line.label) for line in lines]
        columns[f"{part}_bytes"] = np.frombuffer(b"".join(data), np.uint8)
        columns[f"{part}_sizes"] = np.array([len(d) for d in data])
        columns[f"{part}_labels"] = np.array(labels)
    with file.open("wb") as out:
        np.savez(out, **columns)  # type: ignore[arg-type]


def unpack(file: Path, part: str) -> tuple[np.ndarray, list[str]]:
    """The images of a split, uint8 [n, 32, 32, 3], and their n labels."""
    with np.load(file) as z:
        raw, ends = z[f"{part}_bytes"].tobytes(), z[f"{part}_sizes"].cumsum()
        labels = [str(label) for label in z[f"{part}_labels"]]
    each = [raw[a:b] for a, b in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]
    with ThreadPoolExecutor() as threads:
        return np.stack(list(threads.map(_pixels, each, chunksize=500))), labels


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Views:
    """Rows of the plan with views made on the device: the platform's random crops, bilinear, without antialiasing."""

    def __init__(self, config: Config, images: np.ndarray, device: torch.device, seconds: float) -> None:
        self.config, self.device = config, device
        self.images = torch.from_numpy(images).to(device)
        data = config.data
        self.plan = Plan(PlanSpec(len(images), config.seed, data.row_size, data.block, data.window))
        self.until = time.monotonic() + seconds
        self.stream = (
            torch.cuda.Stream(device) if device.type == "cuda" else None
        )  # so that the thread does not wait for training steps

    def rows(self, first: int, last: int) -> Iterator[Row]:
        """Yields rows with their views on the device. A thread makes the next rows while training steps run."""
        per_slice = self.config.rows_per_step * self.config.train.checkpoint_every
        parts = iter([range(k, min(k + TOGETHER, last)) for k in range(first, last, TOGETHER)])
        with ThreadPoolExecutor(1) as beside:
            coming = deque(beside.submit(self.made, part) for part in islice(parts, 2))
            while coming:
                made = coming.popleft().result()
                coming += [beside.submit(self.made, part) for part in islice(parts, 1)]
                for row in made:
                    if row.row > first and row.row % per_slice == 0 and time.monotonic() > self.until:
                        raise SliceOver
                    yield row

    def made(self, numbers: range) -> list[Row]:
        """Makes several rows at once, because starting the many small photometric kernels takes most of the time."""
        layout, size = RowLayout.of(self.config), self.config.data.row_size
        specs = [self.plan.row(number) for number in numbers]
        with torch.cuda.stream(self.stream):
            together = self.views(np.concatenate([s.positions for s in specs]), np.concatenate([s.samples for s in specs]))
            parts = [views.unflatten(0, (-1, len(specs), size)).unbind(1) for views in together]
            own = [
                [part.flatten(0, 1).contiguous(memory_format=torch.channels_last) for part in row]
                for row in zip(*parts, strict=True)
            ]
        if self.stream is not None:
            self.stream.synchronize()
        return [
            Row(
                row=number,
                views=views,
                params=[],
                position=spec.positions,
                sample=spec.samples,
                outcome=np.zeros(size, np.uint8),
                weight=np.ones(size, np.float32),
                key=[""] * size,
                shard=[""] * size,
                stand_in_for=[None] * size,
                events=[],
                packed=np.zeros(0, np.uint8),
                layout=layout,
            )
            for number, spec, views in zip(numbers, specs, own, strict=True)
        ]

    def views(self, positions: np.ndarray, samples: np.ndarray) -> list[Tensor]:
        groups = list(self.config.views.values())
        drawn = uniforms(self.config.seed, positions, sum(g.count for g in groups), params.SLOTS)
        images = self.images[torch.from_numpy(samples).to(self.device)].permute(0, 3, 1, 2).float()
        views, first = [], 0
        for group in groups:
            mine = drawn[:, first : first + group.count].swapaxes(0, 1)  # [V, R, SLOTS]
            cut = self._cut(images, mine, group.scale, group.ratio, group.flip, group.size)
            columns = np.zeros((*mine.shape[:2], len(params.PARAMS)), np.float32)
            columns[..., len(params.GEOMETRY) :] = params.photometric_params(mine, group.photometric)
            views.append(photometric.apply(cut, columns))
            first += group.count
        return views

    def _cut(self, images: Tensor, u: np.ndarray, scale: Any, ratio: Any, flip: float, size: int) -> Tensor:
        """uint8 [V, R, size, size, 3], cropped by the rule of images/views/crops.py."""
        side = images.shape[-1]
        area = (scale[0] + (scale[1] - scale[0]) * u[..., params.AREA]) * side * side
        low, high = np.log(ratio)
        shape = np.exp(low + (high - low) * u[..., params.RATIO])
        w, h = np.rint(np.sqrt(area * shape)), np.rint(np.sqrt(area / shape))
        fits = (w > 0) & (w <= side) & (h > 0) & (h <= side)
        choice, some = fits.argmax(-1)[..., None], fits.any(-1)
        w, h = (np.where(some, np.take_along_axis(x, choice, -1)[..., 0], side) for x in (w, h))
        top, left = (np.floor(u[..., slot] * (side - x + 1)) for slot, x in ((params.TOP, h), (params.LEFT, w)))
        top, left = np.where(some, top, 0), np.where(some, left, 0)
        mirrored = np.where(u[..., params.FLIP] < flip, -1.0, 1.0)
        zero = np.zeros_like(w)
        across = np.stack([mirrored * w / side, zero, (2 * left + w) / side - 1], -1)
        down = np.stack([zero, h / side, (2 * top + h) / side - 1], -1)
        theta = torch.from_numpy(np.stack([across, down], -2).astype(np.float32)).to(self.device)
        found = [
            F.grid_sample(images, F.affine_grid(one, [len(one), 3, size, size], align_corners=False), "bilinear", "border", False)
            for one in theta
        ]
        return torch.stack(found).round_().clamp_(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)


@torch.no_grad()
def knn(config: Config, checkpoint: Place, splits: list[tuple[np.ndarray, list[str]]], device: torch.device) -> float:
    """kNN accuracy in percent of a checkpoint's encoder. splits: images and labels of the bank and of the queries."""
    weights = checkpoints.load(checkpoint).model
    encoder = build_encoder(config.model)
    encoder.load_state_dict({k.removeprefix("encoder."): t for k, t in weights.items() if k.startswith("encoder.")})
    encoder.to(device).eval()
    sides = []
    for images, labels in splits:
        values = [
            F.normalize(encoder(photometric.normalise(torch.from_numpy(x).to(device)[None])), dim=1) for x in _chunks(images)
        ]
        sides.append(Features(torch.cat(values).cpu().numpy(), list(labels), Counter()))
    bank, query = sides
    return knn_top1(bank, query, k=200, temperature=0.1)


def _chunks(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + 1000] for start in range(0, len(images), 1000)]


def run(file: Path, folder: Path, seconds: float, device: torch.device, overrides: list[str]) -> dict[str, Any]:
    config = load(RECIPE, ["train.checkpoint_every=100", "train.keep_checkpoints=2", *overrides])
    splits = [unpack(file, part) for part in ("train", "test")]
    images = splits[0][0]
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "notes.json"
    known: dict[str, Any] = json.loads(notes.read_text()) if notes.exists() else {"minutes": 0.0, "knn": {}}
    limit = seconds
    for mark in MARKS:  # stop at the next mark too, to measure accuracy there
        if str(mark) not in known["knn"]:
            limit = min(seconds, max(1.0, mark * 60 - known["minutes"] * 60))
            break
    views = Views(config, images, device, limit)
    began, done = time.monotonic(), True
    try:
        how = {"samples": len(images), "index_digest": file.name, "comm": LocalComm(), "prepare": lambda row: row.views}
        train(config, rows=views.rows, run_dir=folder, resume=True, device=device, **how)  # type: ignore[arg-type]
    except SliceOver:
        done = False
    known["minutes"] += (time.monotonic() - began) / 60
    newest = checkpoints.latest_valid(folder / "checkpoints")
    assert newest is not None
    for mark in MARKS:
        if known["minutes"] >= mark and str(mark) not in known["knn"]:
            known["knn"][str(mark)] = round(knn(config, newest, splits, device), 2)
    if done and "last" not in known["knn"]:
        known["knn"]["last"] = round(knn(config, newest, splits, device), 2)
    notes.write_text(json.dumps(known))
    steps = checkpoints.steps_of(newest)
    rate = steps * config.train.batch / known["minutes"] / 60
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    total = config.steps(len(images))
    return {**known, "steps": steps, "of": total, "images_per_second": round(rate, 1), "done": done, "hardware": where, "n": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("shards", type=Path)
    packing.add_argument("file", type=Path)
    training = commands.add_parser("train")
    training.add_argument("file", type=Path)
    training.add_argument("run", type=Path)
    training.add_argument("overrides", nargs="*")
    training.add_argument("--seconds", type=float, default=540.0)
    training.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.shards, options.file)
    else:
        sys.setswitchinterval(1e-4)  # two threads start many kernels; with the default of 5 ms each would wait for the other
        print(json.dumps(run(options.file, options.run, options.seconds, torch.device(options.device), options.overrides)))


if __name__ == "__main__":
    main()
