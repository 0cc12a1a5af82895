"""An encoder of timm (Wightman), made to fit: weights from the seed, batch norm that knows nothing of ranks."""

from __future__ import annotations

import hashlib
from types import ModuleType

import torch
from torch import Tensor, nn

from swav_platform import config
from swav_platform.models.normalisation import RowBatchNorm


def build(timm: ModuleType, model: config.Model, seed: int) -> nn.Module:
    """`model.name` without its classifier and without dropout; `feature_dim` tells the size of what it gives.

    timm draws weights from torch's global generator: it is seeded for the time of the call and put back afterwards.
    """
    name = model.name.removeprefix("timm/")
    key = hashlib.sha256(f"{seed} {model.name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(key[:8], "big") >> 1)
        try:
            encoder = timm.create_model(name, num_classes=0, dynamic_img_size=True)  # transformers: views of several sizes
        except TypeError:
            encoder = timm.create_model(name, num_classes=0)
    _replace_batch_norm(encoder)
    for part in encoder.modules():  # randomness that comes from no position
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif hasattr(part, "drop_prob"):
            part.drop_prob = 0.0
    if model.activation_checkpointing:
        encoder.set_grad_checkpointing(True)
    with torch.no_grad():
        encoder.eval()
        encoder.feature_dim = encoder(torch.zeros(1, 3, 224, 224)).shape[1]
    return encoder.train()


class RowBatchNormAct(RowBatchNorm):
    """timm's batch norm that ends in an activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


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
