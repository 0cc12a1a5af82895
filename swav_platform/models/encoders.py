"""From the name of an encoder to the encoder: ours by family, any of timm's as `timm/NAME`."""

from __future__ import annotations

import difflib
from types import ModuleType

import torch
from torch import nn

from swav_platform import config
from swav_platform.errors import UsageError
from swav_platform.models import regnet, resnet

TIMM = "timm/"


def check_name(model: config.Model) -> None:
    """Raises UsageError if `build_encoder` would not know `model.name`. Builds nothing."""
    if model.name.startswith(TIMM):
        _check_timm(_timm(), model.name.removeprefix(TIMM))
    elif model.name not in resnet.SHAPES | regnet.LINES:
        known = ", ".join([*resnet.SHAPES, *regnet.LINES])
        raise UsageError(
            f"There is no encoder '{model.name}'; model.name must be one of {known}, or {TIMM}NAME with timm installed."
        )


def build_encoder(model: config.Model, seed: int = 0) -> nn.Module:
    """The encoder that `model` names, its weights drawn from `seed` alone: the same on every rank and machine.

    It maps images [n, 3, H, W] to features [n, feature_dim], a number that it has as an attribute.
    Raises UsageError for an unknown name, and for `timm/...` without timm.
    """
    check_name(model)
    if model.name.startswith(TIMM):
        from swav_platform.models.timm_models import build

        return build(_timm(), model, seed)
    with torch.device("meta"):  # no memory and no global random numbers are spent on weights that are drawn below
        encoder: nn.Module
        if model.name in regnet.LINES:
            stride = model.stem_stride if model.stem == "small" else 2
            encoder = regnet.RegNet(regnet.LINES[model.name], stride, model.activation_checkpointing)
        else:
            shape = resnet.SHAPES[model.name]
            encoder = resnet.ResNet(shape, model.stem, model.stem_stride, model.activation_checkpointing)
    encoder.to_empty(device="cpu")
    resnet.initialise(encoder, seed, "encoder")
    return encoder


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            f"model.name asks for an encoder of timm, which can't be imported here ({error}). Install it with "
            f"`pip install --no-deps timm torchvision huggingface_hub` (on every machine that trains or serves), or take an encoder of ours."
        ) from None
    return timm


def _check_timm(timm: ModuleType, name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.0)
        raise UsageError(f"timm {timm.__version__} has no model '{name}'; near to it are {', '.join(near)}.")
