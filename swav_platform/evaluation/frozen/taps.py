"""Features of an encoder in one forward pass: its pooled output, and the maps of its stages pooled to the published sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.errors import UsageError
from swav_platform.models.package import preprocess

POOLED = {"feature1": 12, "feature2": 6, "feature3": 4, "feature4": 3, "feature5": 2}
"""Height and width of the maps of stem and stages, so that each has about 9,000 values in a ResNet-50 (Goyal et al. 2019)."""

OUTPUT = "features"
_STAGES = ("bn1", "layer1", "layer2", "layer3", "layer4")

Extract = Callable[[list[np.ndarray], bool], dict[str, np.ndarray]]
"""(images uint8 [H, W, 3], with maps?) -> `features` float32 [b, D] and, if wanted, `feature1` … float16 [b, n]."""


def extractor(encoder: nn.Module, input_size: int, device: str = "cpu") -> Extract:
    """A function that computes features of decoded images on `device`."""
    encoder.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def extract(images: list[np.ndarray], with_maps: bool) -> dict[str, np.ndarray]:
        pixels = torch.stack([preprocess(image, input_size) for image in images]).to(device, memory_format=torch.channels_last)
        with torch.inference_mode(), _tapped(encoder, with_maps) as maps:
            output = encoder(pixels).float().cpu().numpy()
        return {OUTPUT: output, **{name: _pooled(name, maps[name]) for name in maps}}

    return extract


@contextmanager
def _tapped(encoder: nn.Module, wanted: bool) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of stem and stages while it is open."""
    found: dict[str, Tensor] = {}
    if wanted and not all(hasattr(encoder, stage) for stage in _STAGES):
        raise UsageError("Probes need the stages of a ResNet, and this encoder has none. Leave out `probes`.")

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            found[name] = out.clone() if name == "feature1" else out  # the stem's ReLU works in place

        return hook

    stages = zip(POOLED, _STAGES, strict=True) if wanted else ()
    handles = [getattr(encoder, stage).register_forward_hook(keep(name)) for name, stage in stages]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _pooled(name: str, maps: Tensor) -> np.ndarray:
    if name == "feature1":
        maps = F.relu(maps)
    rows: np.ndarray = F.adaptive_avg_pool2d(maps.float(), POOLED[name]).flatten(1).half().cpu().numpy()
    return rows
