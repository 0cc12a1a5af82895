"""Names of a ResNet's weights in other frameworks, from torchvision's, which are ours."""

from __future__ import annotations

import re
from collections.abc import Callable

_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(.+)")


def torchvision(name: str) -> str:
    """Also timm's and mmdet's (`style='pytorch'`)."""
    return name


def detectron2(name: str) -> str:
    """The backbone `build_resnet_backbone` without a prefix: stem, res2 … res5; a norm belongs to its convolution."""
    if found := _BLOCK.fullmatch(name):
        stage, block, rest = found.groups()
        rest = rest.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        rest = re.sub(r"^bn(\d)\.", r"conv\1.norm.", rest)
        return f"res{int(stage) + 1}.{block}.{rest}"
    return "stem." + name.replace("bn1.", "conv1.norm.")


def transformers(name: str) -> str:
    """`ResNetModel`: an embedder, then stages of layers."""
    if found := _BLOCK.fullmatch(name):
        stage, block, rest = found.groups()
        at = f"encoder.stages.{int(stage) - 1}.layers.{block}"
        if rest.startswith("downsample."):
            part, _, kind = rest.removeprefix("downsample.").partition(".")
            return f"{at}.shortcut.{'convolution' if part == '0' else 'normalization'}.{kind}"
        part, _, kind = rest.partition(".")
        return f"{at}.layer.{int(part[-1]) - 1}.{'convolution' if part.startswith('conv') else 'normalization'}.{kind}"
    part, _, kind = name.partition(".")
    return f"embedder.embedder.{'convolution' if part == 'conv1' else 'normalization'}.{kind}"


NAMES: dict[str, Callable[[str], str]] = {
    "torchvision": torchvision,
    "timm": torchvision,
    "transformers": transformers,
    "detectron2": detectron2,
    "mmdet": torchvision,
}
