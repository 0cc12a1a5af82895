"""Exponential moving averages of the weights (Polyak and Juditsky 1992). A run that keeps them exports them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from swav_platform.training.optimisation.sharding import own, split_like

KEY = "ema"  # suffix of names in optimizer.safetensors: <name>/ema


class Averages:
    """a <- decay a + (1 - decay) w after each step, for all weights and running statistics, starting from the first step's weights.

    Weights that a step does not train are copied instead: an average over centroids of different epochs has no meaning.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, network: nn.Module, frozen: Collection[str]) -> None:
        """frozen: names of the weights that this step did not train."""
        now = {name: t for name, t in network.state_dict().items() if t.is_floating_point()}
        if not self.values:
            self.values = {name: t.clone() for name, t in now.items()}
            return
        averages, weights = ([own(values[name]) for name in self.values] for values in (self.values, now))
        torch._foreach_lerp_(averages, weights, 1 - self.decay)
        for name in frozen:
            own(self.values[name]).copy_(own(now[name]))

    def tensors(self) -> dict[str, Tensor]:
        """The averages, split like their weights, by their names in a checkpoint."""
        return {f"{name}/{KEY}": t for name, t in self.values.items()}

    def load(self, values: Mapping[str, Tensor], network: nn.Module) -> None:
        """Restores averages by name."""
        like = network.state_dict()
        kept = [name for name in like if name in values]
        self.values = {name: torch.empty_like(like[name]).copy_(split_like(like[name], values[name])) for name in kept}


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Splits the tensors of optimizer.safetensors into averages by name (empty for a run without them) and all others."""
    end = f"/{KEY}"
    averages = {name.removesuffix(end): t for name, t in tensors.items() if name.endswith(end)}
    return averages, {name: t for name, t in tensors.items() if not name.endswith(end)}
