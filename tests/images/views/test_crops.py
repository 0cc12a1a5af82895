"""Crops against a slow copy of torchvision's algorithm, with its own randomness and with ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from swav_platform.config import ImagePolicy, ViewGroup
from swav_platform.images.decoding.decode import Decoded, decode_reduced
from swav_platform.images.views import crops
from swav_platform.images.views.params import SLOTS
from swav_platform.images.views.randomness import uniforms
from tests.makers import encoded

LARGE = ViewGroup(size=32, count=2, scale=(0.14, 1.0))
SMALL = ViewGroup(size=16, count=3, scale=(0.05, 0.14))


def torchvision_crop(height: int, width: int, scale: tuple, ratio: tuple, draw) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params; draw(what, low, high) gives a uniform number."""
    area = height * width
    for attempt in range(10):
        target = area * draw(("area", attempt), *scale)
        aspect = math.exp(draw(("ratio", attempt), math.log(ratio[0]), math.log(ratio[1])))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draw(("top", 0), 0, height - h + 1)), int(draw(("left", 0), 0, width - w + 1)), h, w
    in_ratio = width / height
    if in_ratio < min(ratio):
        w, h = width, round(width / min(ratio))
    elif in_ratio > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(32, 32), (375, 500), (500, 333), (40, 800), (16, 17), (900, 45)])
@pytest.mark.parametrize("group", [LARGE, SMALL])
def test_the_same_numbers_give_torchvisions_crop(size: tuple[int, int], group: ViewGroup) -> None:
    numbers = uniforms(31, np.arange(60), group.count, SLOTS)
    proposals = crops.proposals(numbers, group)
    for r in range(60):
        for v in range(group.count):
            mine = numbers[r, v]
            slot = {"area": 0, "ratio": 10, "top": 20, "left": 21}

            def draw(what, low, high, mine=mine, slot=slot):
                return low + (high - low) * mine[slot[what[0]] + what[1]]

            got = crops.choose(*size, proposals[r][v], group.ratio)
            assert tuple(got) == torchvision_crop(*size, group.scale, group.ratio, draw)
            assert proposals[r][v].flip == (mine[22] < 0.5)


@pytest.mark.parametrize("size", [(32, 32), (60, 100), (30, 120)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    count = 4000
    generator = np.random.default_rng(5)
    theirs = np.array(
        [torchvision_crop(*size, LARGE.scale, LARGE.ratio, lambda _, a, b: generator.uniform(a, b)) for _ in range(count)]
    )
    proposals = crops.proposals(uniforms(31, np.arange(count), 1, SLOTS), LARGE)
    ours = np.array([crops.choose(*size, line[0], LARGE.ratio) for line in proposals])
    for number, name in enumerate(crops.Crop._fields):
        values = np.arange(max(size) + 1)
        apart = np.abs((ours[:, number, None] <= values).mean(0) - (theirs[:, number, None] <= values).mean(0)).max()
        assert apart < 1.95 * math.sqrt(2 / count), name  # Kolmogorov-Smirnov, p = 0.001


def test_crops_lie_in_the_image_and_reach_its_edges() -> None:
    proposals = crops.proposals(uniforms(1, np.arange(3000), 1, SLOTS), SMALL)
    boxes = np.array([crops.choose(20, 50, line[0], SMALL.ratio) for line in proposals])
    bottom, right = boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    assert boxes[:, :2].min() == 0
    assert bottom.max() == 20
    assert right.max() == 50
    assert boxes[:, 2:].min() >= 1


@pytest.mark.parametrize(
    ("size", "expected"), [((16, 320), (0, 149, 16, 21)), ((320, 16), (149, 0, 21, 16)), ((50, 50), (0, 0, 50, 50))]
)
def test_the_central_crop_when_no_proposal_fits(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    never = crops.Proposal([4.0] * 10, [1.0] * 10, 0.5, 0.5, False)
    assert tuple(crops.choose(*size, never, (3 / 4, 4 / 3))) == expected


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "crop", [(4, 10, 24, 32), (0, 0, 40, 60), (39, 59, 1, 1), (0, 0, 1, 60), (3, 5, 7, 2), (20, 30, 8, 8), (0, 1, 40, 17)]
)
def test_cut_is_the_box_resized_in_float64(crop: tuple[int, int, int, int], interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    box = crops.Crop(*crop)
    straight, mirrored = np.zeros((2, 8, 9, 3), np.uint8)
    crops.cut(Decoded(pixels, 40, 60), box, False, interpolation, straight)
    crops.cut(Decoded(pixels, 40, 60), box, True, interpolation, mirrored)
    np.testing.assert_array_equal(straight[:, ::-1], mirrored)
    inside = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    exact = resized(inside.astype(float), (8, 9), interpolation)
    assert np.abs(straight - exact).max() <= 0.51


def test_a_crop_as_large_as_its_view_is_copied() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for interpolation in ("bilinear", "bicubic"):
        whole = np.zeros((40, 60, 3), np.uint8)
        crops.cut(Decoded(pixels, 40, 60), crops.Crop(0, 0, 40, 60), False, interpolation, whole)
        np.testing.assert_array_equal(whole, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_box_is_at_the_same_place_in_a_smaller_image(orientation: int, parts: int) -> None:
    """Sides that no reduction divides; the corners, where an error of place is largest."""
    y, x = np.mgrid[0:393, 0:521]
    waves = [128 + 100 * np.sin(x / 31 + y / 57), 128 + 100 * np.sin(y / 29), 128 + 100 * np.sin(x / 37 - y / 41)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.stack(waves, axis=-1).astype(np.uint8), quality=95, subsampling=0, exif=exif)
    full, small = (decode_reduced(data, ImagePolicy(), lambda h, w, parts=parts: parts) for parts in (1, parts))
    assert small.pixels.shape[:2] == (-(-full.height // parts), -(-full.width // parts))
    for top, left in ((0, 0), (0, full.width - 128), (full.height - 128, 0), (full.height - 128, full.width - 128)):
        views = np.zeros((2, 16, 16, 3), np.uint8)
        for view, image in zip(views, (full, small), strict=True):
            crops.cut(image, crops.Crop(top, left, 128, 128), False, "bilinear", view)
        assert np.abs(views[0].astype(int) - views[1]).max() <= 1 + parts / 2


def resized(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Antialiased: a triangle or Keys' cubic as wide as the reduction, within the box, in float64."""

    def cubic(x: np.ndarray) -> np.ndarray:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    def matrix(length: int, size: int) -> np.ndarray:
        scale = length / size
        centre = (np.arange(size)[:, None] + 0.5) * scale
        x = np.abs((np.arange(length) + 0.5 - centre) / max(scale, 1))
        weight = np.clip(1 - x, 0, None) if interpolation == "bilinear" else cubic(x)
        return weight / weight.sum(1, keepdims=True)

    exact = np.einsum("yh,hwc,xw->yxc", matrix(pixels.shape[0], size[0]), pixels, matrix(pixels.shape[1], size[1]))
    return np.clip(exact, 0, 255)
