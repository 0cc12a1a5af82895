"""LARS, SGD, AdamW; and their state as tensors by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swav_platform import config


class Lars:
    """SGD with momentum on gradients of layer-wise adapted size (You et al. 2017, eq. 6), as published with SwAV.

    g <- trust ||p|| / (||g|| + weight_decay ||p||) (g + weight_decay p) for every parameter, none excluded. Where ||p|| or
    ||g|| is 0 the gradient stays as it is, without weight decay: a fresh bias makes a large first step.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, trust: float
    ) -> None:
        self.sgd = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
        self.weight_decay, self.trust = weight_decay, trust

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.sgd.param_groups

    @property
    def state(self) -> dict[Tensor, Any]:
        return self.sgd.state

    def zero_grad(self) -> None:
        self.sgd.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._adapt(p, p.grad)
        self.sgd.step()

    def _adapt(self, p: Tensor, g: Tensor) -> None:
        p_norm, g_norm = p.norm(), g.norm()
        adapted = (p_norm > 0) & (g_norm > 0)  # selected by arithmetic, so that a GPU is not waited for
        rate = torch.where(adapted, self.trust * p_norm / (g_norm + p_norm * self.weight_decay + 1e-8), 1.0)
        g.add_(p * (adapted.to(p.dtype) * self.weight_decay)).mul_(rate)


AnyOptimiser = torch.optim.Optimizer | Lars


def build_optimiser(parameters: Iterable[nn.Parameter], options: config.Optimiser) -> AnyOptimiser:
    """Over all parameters, weight decay on each."""
    if options.name == "lars":
        return Lars(parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay, trust=options.trust)
    if options.name == "sgd":
        return torch.optim.SGD(parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    return torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay)


def optimiser_tensors(optimiser: AnyOptimiser, network: nn.Module) -> dict[str, Tensor]:
    """State of every parameter that has one: `<parameter>/<quantity>` -> tensor."""
    tensors = {}
    for name, p in network.named_parameters():
        for key, value in optimiser.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
    return tensors


def load_optimiser_tensors(optimiser: AnyOptimiser, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `optimiser_tensors`."""
    parameters = dict(network.named_parameters())
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        p = parameters[name]
        # Quantities of the parameter's shape take its memory layout too: the order of later sums hangs on it.
        kept = torch.empty_like(p).copy_(value).detach() if value.shape == p.shape else value.clone()
        optimiser.state[p][key] = kept
