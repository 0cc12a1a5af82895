"""LARS, SGD and AdamW, and their state as tensors by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swav_platform import config
from swav_platform.training.optimisation.sharding import is_split, norms, own, split_like


class Lars:
    """SGD with momentum on gradients of layer-wise adapted size (You et al. 2017, eq. 6), as published with SwAV.

    g <- trust ||p|| / (||g|| + weight_decay ||p||) (g + weight_decay p). If ||p|| or ||g|| is 0, the gradient is used unchanged and
    without weight decay, so a zero bias makes a large first step. Parameter groups with `adapted` false use plain SGD.
    clip: use the smaller of that rate and the learning rate (LARC, as in NVIDIA apex).
    """

    def __init__(
        self, parameters: Any, *, lr: float, momentum: float, weight_decay: float, trust: float, clip: bool = False
    ) -> None:
        self.sgd = torch.optim.SGD(parameters, lr=lr, momentum=momentum, foreach=True)
        self.weight_decay, self.trust, self.clip = weight_decay, trust, clip

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
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group.get("adapted", True):
                self._adapt(parameters, [p.grad for p in parameters], group["lr"])
        self.sgd.step()

    def _adapt(self, parameters: list[Tensor], gradients: list[Tensor], lr: float) -> None:
        p_norm, g_norm = norms([*parameters, *gradients]).chunk(2)
        parameters, gradients = ([own(t) for t in of] for of in (parameters, gradients))
        adapted = (p_norm > 0) & (g_norm > 0)
        rate = self.trust * p_norm / (g_norm + p_norm * self.weight_decay + 1e-8)
        rate = torch.where(adapted, (rate / lr).clamp_max(1) if self.clip else rate, 1.0)
        if rate.is_cuda:
            _scale_on_device(parameters, gradients, rate, adapted * self.weight_decay)
            return
        rates, which = rate.tolist(), adapted.tolist()
        decayed = [(g, p) for g, p, one in zip(gradients, parameters, which, strict=True) if one]
        if decayed and self.weight_decay:
            torch._foreach_add_([g for g, _ in decayed], [p for _, p in decayed], alpha=self.weight_decay)
        torch._foreach_mul_(gradients, rates)


def _scale_on_device(parameters: list[Tensor], gradients: list[Tensor], rate: Tensor, decay: Tensor) -> None:
    """g <- rate (g + decay p), without waiting for a GPU. rate, decay: [n]."""
    torch._foreach_add_(gradients, torch._foreach_mul(parameters, list(decay.unbind())))
    torch._foreach_mul_(gradients, list(rate.unbind()))


AnyOptimiser = torch.optim.Optimizer | Lars


def build_optimiser(parameters: Iterable[nn.Parameter], options: config.Optimiser) -> AnyOptimiser:
    """An optimiser of all parameters. `exclude_1d` turns off weight decay and adaptation for one-dimensional ones."""
    groups = _groups(list(parameters), options)
    if options.name == "lars":
        lars = {"momentum": options.momentum, "weight_decay": options.weight_decay, "trust": options.trust}
        return Lars(groups, lr=options.lr, clip=options.clip_rate, **lars)
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    return torch.optim.AdamW(groups, lr=options.lr, weight_decay=options.weight_decay)


def _groups(parameters: list[nn.Parameter], options: config.Optimiser) -> list[dict[str, Any]]:
    """Parameter groups. Whole and split parameters are in different groups, since no foreach kernel accepts both."""
    kinds = [[p for p in parameters if is_split(p) == kind] for kind in (False, True)]
    if all(kinds):
        return [group for kind in kinds for group in _groups(kind, options)]
    if not options.exclude_1d:
        return [{"params": parameters}]
    excluded: dict[str, Any] = {"params": [p for p in parameters if p.dim() <= 1]}
    excluded |= {"adapted": False} if options.name == "lars" else {"weight_decay": 0.0}
    return [{"params": [p for p in parameters if p.dim() > 1]}, excluded]


def optimiser_tensors(optimiser: AnyOptimiser, network: nn.Module) -> dict[str, Tensor]:
    """State of all parameters that have one, as `<parameter>/<quantity>` -> tensor."""
    tensors = {}
    for name, p in network.named_parameters():
        for key, value in optimiser.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
    return tensors


def load_optimiser_tensors(optimiser: AnyOptimiser, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restores the state that `optimiser_tensors` returned."""
    parameters = dict(network.named_parameters())
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        p = parameters[name]
        # Quantities of the parameter's shape need its memory layout too, which decides the order of later sums.
        kept = torch.empty_like(p).copy_(split_like(p, value)).detach() if value.shape == p.shape else value.clone()
        optimiser.state[p][key] = kept
