"""Our views against the published recipe as it is usually made (benchmarks/published_recipe.py): pixels and chances."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from swav_platform.config import Photometric, ViewGroup
from swav_platform.images.views import crops, params, photometric
from swav_platform.images.views.randomness import uniforms

COUNT = 3000
LARGE = ViewGroup(size=224, count=1, scale=(0.14, 1.0))
SMALL = ViewGroup(size=96, count=1, scale=(0.05, 0.14))


@pytest.fixture(scope="module")
def recipe(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_recipe", root / "benchmarks" / "published_recipe.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples of equal size, in units of what one in a thousand equal pairs exceeds."""
    values = np.union1d(ours, theirs)
    distance = np.abs(np.searchsorted(np.sort(ours), values, "right") - np.searchsorted(np.sort(theirs), values, "right")).max()
    return float(distance / len(ours) / (1.95 * math.sqrt(2 / len(ours))))


@pytest.mark.parametrize("group", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("size", [(375, 500), (333, 500), (60, 300)])
def test_boxes(recipe: ModuleType, size: tuple[int, int], group: ViewGroup) -> None:
    torch.manual_seed(1)
    theirs = np.array([recipe.random_box(size[1], size[0], group.scale) for _ in range(COUNT)], float)
    proposals = crops.proposals(uniforms(31, np.arange(COUNT), 1, params.SLOTS), group)
    ours = np.array([crops.choose(*size, line[0], group.ratio) for line in proposals], float)
    measures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "room above": lambda box: box[:, 0] / np.maximum(size[0] - box[:, 2], 1),
        "room beside": lambda box: box[:, 1] / np.maximum(size[1] - box[:, 3], 1),
    }
    for name, measure in measures.items():
        assert apart(measure(ours), measure(theirs)) < 1, name


def test_jitter_orders_factors_and_flips(recipe: ModuleType) -> None:
    torch.manual_seed(2)
    theirs = [recipe.random_jitter() for _ in range(COUNT)]
    numbers = uniforms(31, np.arange(COUNT), 1, params.SLOTS)
    drawn = params.photometric_params(numbers, Photometric())[:, 0]
    column = {name: number for number, name in enumerate(params.PHOTOMETRIC)}
    orders = [params.ORDERS.index(tuple(change for change, _ in line)) for line in theirs]
    ours, published = (np.bincount(o, minlength=24) for o in (drawn[:, column["order"]].astype(int), orders))
    chi_square = ((ours - published) ** 2 / (ours + published)).sum()
    assert chi_square < 49.7  # 23 degrees of freedom, one in a thousand
    for change, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        factors = np.array([dict(line)[change] for line in theirs])
        assert apart(drawn[:, column[name]], factors) < 1, name
    flips = [line[0].flip for line in crops.proposals(numbers, LARGE)]
    assert abs(np.mean(flips) - 0.5) < 3.3 * 0.5 / math.sqrt(COUNT)


def picture(size: int = 96) -> np.ndarray:
    """Soft colours with edges, uint8 [size, size, 3]."""
    rough = np.random.default_rng(4).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(rough).resize((size, size), Image.Resampling.BICUBIC))
    pixels[20:50, 30:70] = (250, 30, 60)
    return pixels


def changed(pixels: np.ndarray, **changes: float) -> np.ndarray:
    """One image through our changes, as levels float64 [H, W, 3]."""
    row = np.zeros((1, 1, len(params.PARAMS)), np.float32)
    row[..., len(params.GEOMETRY) :] = params.NEUTRAL
    for name, value in changes.items():
        row[..., params.COLUMN[name]] = value
    out = photometric.apply(pixels[None, None], row)[0].permute(1, 2, 0).double().numpy()
    return (out * photometric.STD + photometric.MEAN) * 255


@pytest.mark.parametrize("factor", [0.25, 0.7, 1.2, 1.75])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_pillow_blends_the_same_but_for_its_roundings(name: str, factor: float) -> None:
    enhance = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}[name]
    theirs = np.asarray(enhance(Image.fromarray(picture())).enhance(factor)).astype(float)
    difference = np.abs(changed(picture(), jitter=1, **{name: factor}) - theirs)
    assert difference.mean() < 1
    assert difference.max() < 3
