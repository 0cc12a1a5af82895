"""Encoders of timm (Wightman 2019), adapted: weights from the seed, RowBatchNorm for batch normalisation, no dropout."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from swav_platform import config
from swav_platform.models.initialise import seed_of
from swav_platform.models.normalisation import RowBatchNorm


def build(timm: ModuleType, model: config.Model, seed: int) -> nn.Module:
    """Builds `model.name` without its classifier and without dropout. `feature_dim` is the size of its output.

    timm draws weights from torch's global generator, which is seeded for this call and restored afterwards.
    """
    name = model.name.removeprefix("timm/")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(f"{seed} {model.name}"))
        try:
            encoder: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True)  # transformers: views of several sizes
        except TypeError:
            encoder = timm.create_model(name, num_classes=0)
    _replace_batch_norm(encoder)
    for part in encoder.modules():  # its random numbers would not depend on positions alone
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif hasattr(part, "drop_prob"):
            part.drop_prob = 0.0
    if model.activation_checkpointing:
        encoder.set_grad_checkpointing(True)
    with torch.no_grad():
        encoder.eval()
        encoder.feature_dim = encoder(torch.zeros(1, 3, 224, 224)).shape[1]
    built: nn.Module = encoder.train()
    return built


class RowBatchNormAct(RowBatchNorm):
    """RowBatchNorm followed by dropout and an activation, as in timm's BatchNormAct2d."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(x)))
        return out


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, _ours(child))
        else:
            _replace_batch_norm(child)


def _ours(given: nn.BatchNorm1d | nn.BatchNorm2d) -> RowBatchNorm:
    with_act = hasattr(given, "act")
    ours = (RowBatchNormAct if with_act else RowBatchNorm)(given.num_features, given.eps, given.momentum or 0.1)
    if with_act:
        ours.drop, ours.act = given.drop, given.act
    ours.load_state_dict({k: v for k, v in given.state_dict().items() if k in ours.state_dict()}, strict=False)
    return ours
