"""Images that show nothing are seen, and ordinary ones are not taken for such."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from swav_platform.config import ImagePolicy
from swav_platform.images.decode import decode_reduced
from swav_platform.images.look import Look, look_of
from tests.makers import encoded, smooth

RAMP = np.add.outer(np.arange(64), np.arange(64)) * 4095 / 126


def look(data: bytes, policy: ImagePolicy | None = None) -> Look:
    decoded = decode_reduced(data, policy or ImagePolicy(), lambda height, width: 1)
    return look_of(decoded.pixels, decoded.deep)


@pytest.mark.parametrize(
    ("colour", "wanted"),
    [("black", Look.BLACK), ("#0a0a0a", Look.BLACK), ("white", Look.WHITE), ("#f4f4f4", Look.WHITE), ("red", Look.CONSTANT)],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(64, 64), (17, 300), (1000, 800)])
def test_images_of_one_colour(colour: str, wanted: Look, kind: str, size: tuple[int, int]) -> None:
    assert look(encoded(Image.new("RGB", size, colour), kind)) == wanted


def test_ordinary_images() -> None:
    assert all(look(smooth(seed)) == 0 for seed in range(20))
    assert look(encoded(Image.fromarray((RAMP * 16).astype(np.uint16)), "PNG")) == 0


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF"), (np.float32, "TIFF")])
def test_twelve_bits_in_sixteen(dtype: type, kind: str) -> None:
    data = encoded(Image.fromarray(RAMP.astype(dtype)), kind)
    assert look(data) == Look.BLACK | Look.NARROW
    assert look(data, ImagePolicy(levels="stretch")) == 0
    grey = encoded(Image.fromarray((RAMP / 2 + 30000).astype(np.uint16)), "PNG")
    assert look(grey) == Look.NARROW, "not dark, but flat"
    assert look(encoded(Image.fromarray((RAMP / 300).astype(np.uint8)), "PNG")) == Look.BLACK, "8 bits have no unused range"


def test_words() -> None:
    assert [each.word for each in Look] == ["black", "white", "constant", "narrow"]
    assert [each.blank for each in Look] == [True, True, True, False]
