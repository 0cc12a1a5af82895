"""What a logged step shows besides its loss: taken from the step's own forward pass, no second one.

A sample of the step's images travels over ranks in one sum: each rank fills in its own images, all others are zero. So the sum is exact,
and measures are the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.methods.method import StepOutputs
from swav_platform.training.health.history import SAMPLED

SMALL = 4  # side of the small images that show whether steps resemble each other


@dataclass
class Seen:
    """Inputs and features of the forward passes, in order: per pass, of the first view."""

    small: list[Tensor] = field(default_factory=list)  # [R, 3 * SMALL * SMALL]
    features: list[Tensor] = field(default_factory=list)  # [R, F], before the projection head


@contextmanager
def watching(network: nn.Module, wanted: bool) -> Iterator[Seen]:
    """Collects while `network` runs. Features only of networks with a `projection_head`."""
    seen, positions, hooks = Seen(), [0], list[Any]()

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        views, positions[0] = inputs
        small = F.adaptive_avg_pool2d(views[0][: positions[0]].detach().float(), SMALL)
        seen.small.append(small.flatten(1))

    def project(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(seen.features) < len(seen.small):  # a head may run once per resolution
            seen.features.append(inputs[0].detach()[: positions[0]].float())

    if wanted:
        hooks.append(network.register_forward_pre_hook(enter))
        head = getattr(network, "projection_head", None)
        if isinstance(head, nn.Module):
            hooks.append(head.register_forward_pre_hook(project))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Layout:
    """The columns of a sample: weight, small image, embeddings of V views, features, tags."""

    images: int
    views: int
    dim: int
    features: int
    tags: int = 0

    @property
    def width(self) -> int:
        return 1 + 3 * SMALL**2 + self.views * self.dim + self.features + self.tags

    def parts(self, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Small images [n, P], embeddings [n, V, D], features [n, F] and tags [n, T] of the images that could be read.

        All are float64 in host memory.
        """
        table = whole.view(self.images, self.width).double().cpu()
        table = table[table[:, 0] > 0, 1:]
        widths = [3 * SMALL**2, self.views * self.dim, self.features, self.tags]
        small, embeddings, features, tags = table.split(widths, dim=1)
        return small, embeddings.unflatten(1, (self.views, self.dim)), features, tags


def sample(outputs: StepOutputs, seen: Seen, rows_per_step: int, tags: Sequence[Tensor] = ()) -> tuple[Tensor, Layout]:
    """This rank's part of the step's first images, row by row, as a flat tensor to be summed over ranks, and its layout.

    tags: per row, [R, T] of whole numbers below 2^24.
    """
    first = outputs.rows[0]
    kept_rows = min(rows_per_step, SAMPLED)
    per_row = min(len(first.weight), max(1, SAMPLED // rows_per_step))
    small = torch.cat(seen.small)
    features = torch.cat(seen.features) if seen.features else small.new_zeros(len(small), 0)
    views, size, dim = first.embeddings.shape
    columns = [small, features, torch.cat(list(tags)).to(small) if tags else small.new_zeros(len(small), 0)]
    layout = Layout(kept_rows * per_row, views, dim, features.shape[1], columns[2].shape[1])
    whole = small.new_zeros(kept_rows, per_row, layout.width)
    for row, little, feature, tag in zip(outputs.rows, *(column.split(size) for column in columns), strict=True):
        place = row.row - outputs.step * rows_per_step
        if place < kept_rows:
            embeddings = row.embeddings.detach().float().transpose(0, 1).flatten(1)
            lines = torch.cat([row.weight.float()[:, None], little, embeddings, feature, tag], dim=1)[:per_row]
            whole[place] = lines * (row.weight[:per_row, None] > 0)
    return whole.flatten(), layout


def nearest(outputs: StepOutputs, views: Sequence[int], heads: Sequence[int]) -> Tensor:
    """[K]: how many of this rank's assignment views have each prototype as the nearest one; [0] without prototypes."""
    first = outputs.rows[0].scores
    if first.shape[-1] != sum(heads):
        return first.new_zeros(0)
    scores = torch.cat([row.scores.detach()[list(views)].flatten(0, 1) for row in outputs.rows])
    return torch.cat([torch.bincount(s.argmax(-1), minlength=s.shape[-1]) for s in scores.split(list(heads), -1)]).float()
