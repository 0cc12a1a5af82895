"""Synthetic checkpoints under the names of published files."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from swav_platform.models import heads, resnet
from swav_platform.models.initialise import initialised

Tensors = dict[str, torch.Tensor]


def trunk(name: str = "resnet_tiny", *, seed: int = 1) -> Tensors:
    """Weights of an encoder; running statistics differ from 0 and 1."""
    module = initialised(lambda: resnet.ResNet(resnet.SHAPES[name], "imagenet", 1), seed, name)
    generator = torch.Generator().manual_seed(seed)
    for key, t in module.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            t.copy_(torch.rand(t.shape, generator=generator) * 0.1 + (0.95 if key.endswith("var") else 0))
    return {key: t.clone() for key, t in module.state_dict().items()}


def head(features: int, hidden: int = 24, dim: int = 8, norm: str = "batch") -> Tensors:
    return dict(initialised(lambda: heads.projection_head(features, hidden, dim, norm), 2, "head").state_dict())


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": t for name, t in tensors.items()}


def checkpoint(kind: str, weights: Tensors, features: int) -> Any:
    """The tree of a file of `kind`, as its publisher saves it."""
    top = head(features)
    protos = {f"prototypes{i}.weight": torch.randn(5, 8) for i in range(3)}
    if kind == "swav":
        return prefixed("module.", weights | prefixed("projection_head.", top) | {"prototypes.weight": torch.randn(7, 8)})
    if kind == "swav checkpoint":
        return {"epoch": 3, "state_dict": checkpoint("swav", weights, features), "optimizer": {"state": {}, "lr": 0.1}}
    if kind == "swav w5":
        bare = prefixed("projection_head.", head(features, norm="none"))
        return prefixed("module.", weights | bare | {"prototypes.weight": torch.randn(7, 8)})
    if kind in ("deepclusterv2", "selav2"):
        return prefixed("module.", weights | prefixed("projection_head.", top) | prefixed("prototypes.", protos))
    if kind == "vissl":
        inside = {
            "trunk": prefixed("_feature_blocks.", weights),
            "heads": prefixed("0.projection_head.", top) | prefixed("0.", protos),
        }
        return {"classy_state_dict": {"base_model": {"model": inside, "meta": {}}}, "iteration": 4}
    if kind == "msf":
        online = prefixed("encoder_q.module.", weights | prefixed("fc.", top))
        slow = prefixed("encoder_t.module.", weights | prefixed("fc.", top))
        more = prefixed("predict_q.module.", head(8)) | {"queue": torch.zeros(4, 8), "queue_ptr": torch.zeros(1)}
        return {"opt": argparse.Namespace(arch="resnet50"), "state_dict": online | slow | more}
    if kind == "dino":
        teacher = prefixed("backbone.", weights) | {
            "head.mlp.0.weight": torch.zeros(4, features),
            "head.last_layer.weight_g": torch.zeros(3, 1),
        }
        return {"student": prefixed("module.", teacher), "teacher": teacher, "args": argparse.Namespace(lr=1)}
    assert kind in ("torchvision", "dino backbone")
    return weights if kind == "dino backbone" else weights | {"fc.weight": torch.zeros(9, features), "fc.bias": torch.zeros(9)}


KINDS = ["swav", "swav checkpoint", "swav w5", "deepclusterv2", "selav2", "vissl", "msf", "dino", "dino backbone", "torchvision"]
