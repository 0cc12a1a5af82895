"""Builds an encoder from its name: ResNet, RegNet, or any of timm's as `timm/NAME`."""

from __future__ import annotations

import difflib
from types import ModuleType

from torch import nn

from swav_platform import config
from swav_platform.errors import UsageError
from swav_platform.models import regnet, resnet
from swav_platform.models.initialise import initialised

TIMM = "timm/"


def check_name(model: config.Model) -> None:
    """Raises UsageError if `build_encoder` cannot build `model.name`. Builds nothing."""
    if model.name.startswith(TIMM):
        _check_timm(_timm(), model.name.removeprefix(TIMM))
    elif model.name not in resnet.SHAPES | regnet.LINES:
        known = ", ".join([*resnet.SHAPES, *regnet.LINES])
        raise UsageError(
            f"unknown encoder '{model.name}'; set model.name to one of {known}, or to {TIMM}NAME with timm installed."
        )


def build_encoder(model: config.Model, seed: int = 0) -> nn.Module:
    """Builds the encoder that `model` names, with weights drawn from `seed` alone: identical on every rank and machine.

    It maps images [n, 3, H, W] to features [n, feature_dim] and has the attribute `feature_dim`.
    Raises UsageError for an unknown name, and for `timm/...` without timm.
    """
    check_name(model)
    if model.name.startswith(TIMM):
        from swav_platform.models.timm_models import build

        return build(_timm(), model, seed)

    def build_ours() -> nn.Module:
        if model.name in regnet.LINES:
            stride = model.stem_stride if model.stem == "small" else 2
            return regnet.RegNet(regnet.LINES[model.name], stride, model.activation_checkpointing)
        return resnet.ResNet(resnet.SHAPES[model.name], model.stem, model.stem_stride, model.activation_checkpointing)

    return initialised(build_ours, seed, "encoder")


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            f"model.name names an encoder of timm, which can't be imported here ({error}). Install it on every machine that "
            f"trains or serves, with `pip install --no-deps timm torchvision huggingface_hub`, or choose a built-in encoder."
        ) from None
    module: ModuleType = timm
    return module


def _check_timm(timm: ModuleType, name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.0)
        raise UsageError(f"timm {timm.__version__} has no model '{name}'; the nearest names are {', '.join(near)}.")
