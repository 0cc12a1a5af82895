"""Limits on the time and memory of decoding."""

from __future__ import annotations

import pytest
from PIL import Image

from swav_platform.config import ImagePolicy, load
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decode import Refused, decode
from swav_platform.images.decoding import confined
from swav_platform.images.decoding.header import cost_of, most_pixels
from swav_platform.training.preflight import image_warnings
from tests.makers import encoded

KINDS: list[tuple[str, dict[str, object]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("PNG", {"compress_level": 1}),
    ("WEBP", {"method": 0}),
    ("BMP", {}),
    ("GIF", {}),
]


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)


@pytest.mark.stack
@pytest.mark.parametrize(("kind", "options"), KINDS[1:5])
def test_a_larger_max_pixels_suffices(kind: str, options: dict[str, object]) -> None:
    data = encoded(Image.new("RGB", (9000, 8000), (90, 120, 60)), kind, **options)
    with pytest.raises(Refused, match="max_pixels"):
        decode(data, ImagePolicy(max_bytes=2**30))
    assert decode(data, ImagePolicy(max_bytes=2**30, max_pixels=100_000_000)).shape == (8000, 9000, 3)


def test_the_limits_of_ordinary_images_stay() -> None:
    policy = ImagePolicy()
    assert (policy.decode_seconds, policy.decode_bytes) == (1.5, 640 * 2**20)
    assert (confined.cpu_seconds(policy), confined.memory(policy)) == (1.9, 768 * 2**20)
    assert ImagePolicy(max_pixels=1_000_000).decode_seconds == 1.5


@pytest.mark.parametrize(
    ("setting", "outcome"),
    [({"max_decode_seconds": 1e-4}, Outcome.DECODE_TIMEOUT), ({"max_decode_bytes": 2**24}, Outcome.DECODE_MEMORY)],
)
def test_limits_are_settings(setting: dict[str, float], outcome: Outcome) -> None:
    data = encoded(Image.new("RGB", (2000, 1500)), "PNG")
    decode(data, ImagePolicy())
    with pytest.raises(Refused, match=next(iter(setting))) as caught:
        decode(data, ImagePolicy(**setting))
    assert caught.value.outcome == outcome


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_is_said_to_be_accepted_is_accepted(kind: str, options: dict[str, object]) -> None:
    data = encoded(Image.new("RGB", (3000, 2000), (9, 99, 199)), kind, **options)
    for policy in (ImagePolicy(max_decode_seconds=0.5), ImagePolicy(max_decode_bytes=100 * 2**20)):
        most = most_pixels(policy)[kind]
        cost = cost_of(data, kind)
        assert cost is not None
        pixels = 3000 * 2000
        assert cost.seconds / pixels * most <= policy.decode_seconds
        assert cost.memory / pixels * most <= policy.decode_bytes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], []),
        (["max_pixels=1000000"], []),
        (["max_pixels=200000000", "max_bytes=1000000000"], ["raises the limits on decoding to 8 s and 3,052 MiB"]),
        (["max_pixels=200000000"], ["raises the limits", "max_bytes"]),
        (["max_pixels=200000000", "max_bytes=1000000000", "max_decode_seconds=1.5"], ["PNG from about 75 million"]),
        (["max_decode_bytes=100000000"], ["WEBP from about 6 million"]),
    ],
)
def test_settings_without_effect_are_reported(overrides: list[str], words: list[str]) -> None:
    said = list(image_warnings(load(None, [f"data.images.{override}" for override in overrides])))
    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said, strict=True))
