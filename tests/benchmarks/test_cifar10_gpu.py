"""The GPU benchmark at toy size, on a CPU: it packs, trains in slices, resumes and scores."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.makers import encoded, write_tar

TOY = [
    *("model.name=resnet_tiny", "model.stem_stride=2", "model.projection_hidden=32", "model.projection_dim=16"),
    *("method.prototypes=12", "train.batch=32", "data.row_size=16", "train.precision=fp32", "train.compile=false"),
    *("train.epochs=null", "train.steps=6", "train.checkpoint_every=2", "train.threads=1", "train.optimiser.warmup_steps=2"),
]


@pytest.fixture(scope="module")
def bench(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("cifar10_gpu", root / "benchmarks" / "cifar10_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def packed(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 20)):
        files = []
        for i in range(count):
            colour = np.full((32, 32, 3), [250 * (i % 2), 120, 250 * (1 - i % 2)])
            pixels = (colour + rng.integers(-5, 5, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            files.append((f"class{i % 2}/{i:03d}.png", encoded(pixels, "PNG")))
        write_tar(folder / f"cifar10-{part}-000000.tar", files)
    bench.pack(folder, folder / "packed.npz")
    return folder / "packed.npz"


def test_slices_are_the_unbroken_run(bench: ModuleType, packed: Path, tmp_path: Path) -> None:
    cpu, found = torch.device("cpu"), []
    for _ in range(3):
        found.append(bench.run(packed, tmp_path / "sliced", 0.0, cpu, TOY))
    assert [(f["steps"], f["done"]) for f in found] == [(2, False), (4, False), (6, True)]
    whole = bench.run(packed, tmp_path / "whole", 1000.0, cpu, TOY)
    assert whole["knn"]["last"] == found[-1]["knn"]["last"] == 100.0, "two colours"
    assert (tmp_path / "sliced" / "metrics.jsonl").read_text().count("\n") == 6
    weights = [bench.checkpoints.load(tmp_path / run / "checkpoints" / "step-000000006").model for run in ("sliced", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_views_are_crops_of_the_images(bench: ModuleType, packed: Path) -> None:
    """A crop of everything, unflipped, is the image; of a part, lies where it was drawn."""
    config = bench.load(bench.RECIPE, TOY)
    images, labels = bench.unpack(packed, "train")
    assert (images.shape, labels[:2]) == ((60, 32, 32, 3), ["class0", "class1"])
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, None, :, None] * 8, (60, 32, 32, 3)).copy()
    views = bench.Views(config, ramp, torch.device("cpu"), 1.0)
    one = views.images[:1].permute(0, 3, 1, 2).float()
    u = np.full((1, 1, bench.params.SLOTS), 0.5)
    assert torch.equal(views._cut(one, u, (1.0, 1.0), (1.0, 1.0), 0.0, 32)[0, 0], views.images[0])
    assert torch.equal(views._cut(one, u, (1.0, 1.0), (1.0, 1.0), 1.0, 32)[0, 0], views.images[0].flip(1))
    u[..., bench.params.LEFT] = 0.999
    quarter = views._cut(one, u, (0.25, 0.25), (1.0, 1.0), 0.0, 16)[0, 0]
    assert torch.equal(quarter, views.images[0][8:24, 16:32])
