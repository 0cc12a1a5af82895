"""ResNets without the classifier (He et al. 2016, stride in the 3x3 convolution), with torchvision's parameter names."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.models.checkpointing import run_stage
from swav_platform.models.normalisation import RowBatchNorm


@dataclass(frozen=True)
class Shape:
    """Blocks per stage, width of the first stage, kind of block."""

    blocks: tuple[int, ...]
    width: int
    bottleneck: bool


SHAPES = {
    "resnet_tiny": Shape((1, 1, 1, 1), 32, False),
    "resnet18": Shape((2, 2, 2, 2), 64, False),
    "resnet34": Shape((3, 4, 6, 3), 64, False),
    "resnet50": Shape((3, 4, 6, 3), 64, True),
    "resnet101": Shape((3, 4, 23, 3), 64, True),
    "resnet50w2": Shape((3, 4, 6, 3), 128, True),
    "resnet50w4": Shape((3, 4, 6, 3), 256, True),
    "resnet50w5": Shape((3, 4, 6, 3), 320, True),
}


class ResNet(nn.Module):
    """Maps images [n, 3, H, W] to features [n, feature_dim] by global average pooling.

    Stem `imagenet`: 7x7 with stride 2 and max-pooling, as published. Stem `small`: 3x3 with `stem_stride`, for images of up to
    about 64 px.
    """

    def __init__(self, shape: Shape, stem: str, stem_stride: int, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        imagenet = stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, stem_stride)
        self.conv1 = nn.Conv2d(3, shape.width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = RowBatchNorm(shape.width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        block = Bottleneck if shape.bottleneck else BasicBlock
        channels = shape.width
        for i, count in enumerate(shape.blocks):
            width, layers = shape.width * 2**i, []
            for j in range(count):
                layers.append(block(channels, width, stride=2 if i > 0 and j == 0 else 1))
                channels = width * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))
        self.stages = len(shape.blocks)
        self.feature_dim = channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for i in range(self.stages):
            x = run_stage(getattr(self, f"layer{i + 1}"), x, self.checkpointing)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = RowBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = RowBatchNorm(width)
        self.downsample = _shortcut(channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = RowBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = RowBatchNorm(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = RowBatchNorm(width * self.expansion)
        self.downsample = _shortcut(channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), RowBatchNorm(out))
