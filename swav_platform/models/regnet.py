"""RegNetY without the classifier (Radosavovic et al. 2020, arXiv 2003.13678), with torchvision's parameter names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.models.checkpointing import run_stage
from swav_platform.models.normalisation import RowBatchNorm

STEM = 32
SQUEEZE = 0.25


@dataclass(frozen=True)
class Line:
    """Block widths on a quantised line (section 3.3).

    u_j = w_0 + w_a j is rounded to the nearest w_0 w_m^s and then to a multiple of 8.
    """

    depth: int
    w_0: float
    w_a: float
    w_m: float
    group: int

    def stages(self) -> list[tuple[int, int]]:
        """(blocks, width) of each stage. Each width is rounded to the nearest multiple of the group width."""
        widths = []
        for j in range(self.depth):
            power = round(math.log((self.w_0 + self.w_a * j) / self.w_0) / math.log(self.w_m))
            width = round(self.w_0 * self.w_m**power / 8) * 8
            widths.append(max(1, round(width / self.group)) * self.group)
        return [(widths.count(width), width) for width in sorted(set(widths))]


LINES = {"regnet_y_16gf": Line(depth=18, w_0=200, w_a=106.23, w_m=2.48, group=112)}


class RegNet(nn.Module):
    """Maps images [n, 3, H, W] to features [n, feature_dim] by global average pooling. The stem is a 3x3 convolution."""

    def __init__(self, line: Line, stem_stride: int = 2, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.stem = nn.Sequential(nn.Conv2d(3, STEM, 3, stem_stride, 1, bias=False), RowBatchNorm(STEM), nn.ReLU(inplace=True))
        self.trunk_output = nn.Sequential()
        channels = STEM
        for i, (count, width) in enumerate(line.stages(), start=1):
            stage = nn.Sequential()
            for j in range(count):
                stage.add_module(f"block{i}-{j}", Block(channels, width, line.group, stride=2 if j == 0 else 1))
                channels = width
            self.trunk_output.add_module(f"block{i}", stage)
        self.feature_dim = channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.trunk_output:
            x = run_stage(stage, x, self.checkpointing)  # type: ignore[arg-type]
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Block(nn.Module):
    """1x1, grouped 3x3, squeeze-and-excitation with a quarter of the block's input width, 1x1, and a shortcut."""

    def __init__(self, channels: int, width: int, group: int, stride: int) -> None:
        super().__init__()
        self.proj = _conv(channels, width, 1, stride) if stride != 1 or channels != width else None
        self.f = nn.Sequential()
        self.f.add_module("a", _conv(channels, width, 1).append(nn.ReLU(inplace=True)))
        self.f.add_module("b", _conv(width, width, 3, stride, width // group).append(nn.ReLU(inplace=True)))
        self.f.add_module("se", SqueezeExcitation(width, round(SQUEEZE * channels)))
        self.f.add_module("c", _conv(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.f(x) + (x if self.proj is None else self.proj(x)), inplace=True)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' averages (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)), inplace=True)).sigmoid()
        return x * gate


def _conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False), RowBatchNorm(out))
