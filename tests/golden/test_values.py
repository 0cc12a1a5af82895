"""Functions against numbers of the published code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from swav_platform import config
from swav_platform.methods.comm import LocalComm
from swav_platform.methods.sinkhorn import sinkhorn
from swav_platform.methods.swav import swapped_loss
from swav_platform.models import heads
from swav_platform.models.resnet import SHAPES, ResNet
from swav_platform.training.optimisation.optimisers import Lars
from swav_platform.training.optimisation.schedules import learning_rate
from tests.golden.arrays import arrays

SINKHORN = [
    "b256_k300_e05_w1", "b32_k3000_e03_i10_w1", "b48_k100_e05_w3", "b64_k30_e0125_w1_underflow", "b64_k30_e01_w1_overflow",
    "b64_k30_e02_w1_clustered", "b64_k30_e05_i0_w1", "b64_k30_e05_i1_w1", "b64_k30_e05_w1", "b64_k30_e05_w1_clustered",
    "b64_k30_e05_w1_collapsed", "b64_k30_e05_w2", "b64_k30_e05_w2_clustered", "b64_k30_e5_w1", "b96_k30_e05_w2_queue",
]  # fmt: skip


def test_all_sinkhorn_cases_are_listed(golden: Path) -> None:
    assert sorted({k.split("/")[0] for k in arrays(golden / "sinkhorn.npz")}) == SINKHORN


@pytest.mark.parametrize("case", SINKHORN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sinkhorn(golden: Path, case: str, dtype: torch.dtype) -> None:
    z = arrays(golden / "sinkhorn.npz")
    scores = torch.from_numpy(z[f"{case}/scores"]).to(dtype)
    world, rows, k = scores.shape
    iterations = int(z[f"{case}/iterations"])
    codes = sinkhorn(scores.view(-1, k), epsilon=float(z[f"{case}/epsilon"]), iterations=iterations, comm=LocalComm())
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12}[dtype]
    if iterations == 0:  # there, only the total is normalised, and codes are up to 20
        codes, tolerance = codes / codes.sum() * len(codes), tolerance * 50
    at = z[f"{case}/codes_f64_rows"] if f"{case}/codes_f64_rows" in z else slice(None)
    assert np.abs(codes.view(world, rows, k).numpy()[:, at] - z[f"{case}/codes_f64"]).max() < tolerance


@pytest.mark.parametrize("name", ["assign01", "assign1"])
@pytest.mark.parametrize(("tag", "dtype", "tolerance"), [("f32", torch.float32, 5e-6), ("f64", torch.float64, 1e-12)])
def test_swapped_loss_and_gradient(golden: Path, name: str, tag: str, dtype: torch.dtype, tolerance: float) -> None:
    z = arrays(golden / "swav_loss.npz")
    assign = {"assign01": (0, 1), "assign1": (1,)}[name]
    scores = torch.from_numpy(z["scores"]).to(dtype).requires_grad_()
    codes = sinkhorn(scores.detach()[list(assign)], epsilon=0.05, iterations=3, comm=LocalComm())
    loss = swapped_loss(scores, codes, assign, 0.1).mean()
    loss.backward()
    assert np.abs(codes.numpy() - z[f"{tag}/{name}/codes"]).max() < tolerance
    assert abs(loss.item() - float(z[f"{tag}/{name}/loss"])) < tolerance
    assert np.abs(scores.grad.numpy() - z[f"{tag}/{name}/grad_scores"]).max() < tolerance / 50


@pytest.mark.parametrize("name", ["swav_800ep", "swav_200ep_bs256", "short"])
def test_schedule(golden: Path, name: str) -> None:
    z = arrays(golden / "schedules.npz")
    value = {k: z[f"{name}/{k}"].item() for k in ("base_lr", "final_lr", "warmup_epochs", "start_warmup", "iterations_per_epoch")}
    options = config.Optimiser(
        lr=value["base_lr"],
        final_lr=value["final_lr"],
        start_lr=value["start_warmup"],
        warmup_steps=value["warmup_epochs"] * value["iterations_per_epoch"],
    )
    total = int(z[f"{name}/total_iterations"])
    found = np.array([learning_rate(int(i), total, options) for i in z[f"{name}/iterations"]])
    assert np.abs(found - z[f"{name}/lr"]).max() < 1e-12


@pytest.mark.parametrize("case", ["swav", "strong_wd", "clip"])
@pytest.mark.parametrize(("tag", "dtype", "tolerance"), [("f32", torch.float32, 1e-6), ("f64", torch.float64, 1e-12)])
def test_lars(golden: Path, case: str, tag: str, dtype: torch.dtype, tolerance: float) -> None:
    z = arrays(golden / "schedules.npz")
    names = [k.rsplit("/", 1)[1] for k in z if k.startswith("larc/weight/")]
    p = {n: nn.Parameter(torch.from_numpy(z[f"larc/weight/{n}"]).to(dtype)) for n in names}
    lr, decay = z[f"larc/{case}/lr"].item(), z[f"larc/{case}/wd"].item()
    assert bool(z[f"larc/{case}/clip"]) == (case == "clip")
    lars = Lars(p.values(), lr=lr, momentum=0.9, weight_decay=decay, trust=0.001, clip=case == "clip")
    for step in range(3):
        for n in names:
            absent = n == "none_grad" and step < 2
            p[n].grad = None if absent else torch.from_numpy(z[f"larc/grads/{n}"][step]).to(dtype)
        lars.step()
        for n in names:
            grad, key = p[n].grad, f"larc/{tag}/{case}/step{step}"
            assert np.abs(p[n].detach().numpy() - z[f"{key}/weight/{n}"]).max() < tolerance, (n, step)
            if grad is not None:
                assert np.abs(grad.numpy() - z[f"{key}/scaled_grad/{n}"]).max() < tolerance, (n, step)


@pytest.mark.parametrize("name", ["resnet50", "resnet50w2"])
def test_resnet_shapes(golden: Path, name: str) -> None:
    published = json.loads((golden / "resnet_shapes.json").read_text())[name]
    with torch.device("meta"):
        encoder = ResNet(SHAPES[name], "imagenet", 1)
        head = heads.projection_head(encoder.feature_dim, 2048, 128)
        prototypes = heads.prototypes(128, 3000)
    found = {k: list(v.shape) for k, v in encoder.state_dict().items()}
    found |= {f"projection_head.{k}": list(v.shape) for k, v in head.state_dict().items()}
    found |= {f"prototypes.{k}": list(v.shape) for k, v in prototypes.state_dict().items()}
    assert found == {ours: shape for ours, shape, _, _ in published["entries"]}
    assert all(ours == torchvision for ours, _, _, torchvision in published["entries"] if torchvision)
    assert encoder.feature_dim == published["feature_dim"]
