"""A second computation of a ResNet's features, in plain calls of torch, to check a package against its file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-5  # of the largest feature; float32 sums in another order differ by some 1e-7


def plain_features(trunk: Mapping[str, Tensor], images: Tensor, stem: str, stride: int = 2) -> Tensor:
    """Features [n, D] of torchvision's ResNet (stride in the 3x3 convolution) from named weights and functions of torch alone."""

    def normed(x: Tensor, name: str) -> Tensor:
        mean, var = trunk[f"{name}.running_mean"], trunk[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, trunk[f"{name}.weight"], trunk[f"{name}.bias"], False, 0.0, 1e-5)

    def block(x: Tensor, at: str, stride: int) -> Tensor:
        bottleneck = f"{at}.conv3.weight" in trunk
        convolutions = ((1, 1, 0), (2, stride, 1), (3, 1, 0)) if bottleneck else ((1, stride, 1), (2, 1, 1))
        y = x
        for number, by, padding in convolutions:
            y = normed(F.conv2d(y, trunk[f"{at}.conv{number}.weight"], None, by, padding), f"{at}.bn{number}")
            y = y if number == convolutions[-1][0] else F.relu(y)
        if f"{at}.downsample.0.weight" in trunk:
            x = normed(F.conv2d(x, trunk[f"{at}.downsample.0.weight"], None, stride), f"{at}.downsample.1")
        return F.relu(x + y)

    weight = trunk["conv1.weight"]
    x = F.relu(normed(F.conv2d(images, weight, None, stride, weight.shape[-1] // 2), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1) if stem == "imagenet" else x
    for stage in range(1, 5):
        count = len({name.split(".")[1] for name in trunk if name.startswith(f"layer{stage}.")})
        for number in range(count):
            x = block(x, f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1)
    return x.mean((2, 3))


def difference(got: Tensor, wanted: Tensor) -> float:
    """Largest difference, in parts of the largest value."""
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))


def features(encoder: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = encoder.eval()(images)
    return found.clone()
