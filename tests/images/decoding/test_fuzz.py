"""A slice of benchmarks/fuzz_decode.py, and bombs: each input is decoded or given a reason, and costs little."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from swav_platform.config import ImagePolicy
from swav_platform.data.index.magic import format_of
from swav_platform.images.decoding import confined
from swav_platform.images.decoding.decode import decode
from swav_platform.images.decoding.header import MAX_INFLATED, cost_of
from swav_platform.images.decoding.refused import Refused

pytestmark = pytest.mark.filterwarnings("ignore")
IMAGES, TARS = 300, 30


@pytest.fixture(scope="module")
def benchmarks(root: Path) -> Iterator[Path]:
    sys.path.insert(0, str(root / "benchmarks"))
    yield root / "benchmarks"
    sys.path.remove(str(root / "benchmarks"))


@pytest.fixture(scope="module")
def fuzz(benchmarks: Path) -> ModuleType:
    return importlib.import_module("fuzz_decode")


@pytest.fixture(scope="module")
def bombs(benchmarks: Path) -> ModuleType:
    return importlib.import_module("bombs")


def faults(found: object) -> dict[str, int]:
    return {name: count for name, count in found.wrong.items() if name not in ("compared", "chance")}  # type: ignore[attr-defined]


def test_mutated_images_are_decoded_as_by_pillow_or_have_a_reason(fuzz: ModuleType) -> None:
    found, by_format = fuzz.Found(), fuzz.seeds(np.random.default_rng(0))
    for number in range(10**6, 10**6 + IMAGES):
        data = fuzz.image_at(number, by_format)
        fuzz.compare(fuzz.attempt(data, found, f"image {number}"), fuzz.pillow(data), found, f"image {number}")
    assert faults(found) == {}
    assert found.wrong["compared"] > IMAGES / 5
    assert sum(found.outcomes.values()) == IMAGES
    assert 0.3 < found.outcomes["ok"] / IMAGES < 0.9, "mutations that spare all or spoil all test nothing"


def test_mutated_tars_give_samples_or_are_refused(fuzz: ModuleType) -> None:
    found = fuzz.Found()
    seen = fuzz.tars(10**6, TARS, found)
    assert faults(found) == {}
    assert seen["indexed"] + seen["refused"] == TARS
    assert seen["samples"] > TARS
    assert seen["refused"]


def test_whole_images_are_all_decoded(fuzz: ModuleType) -> None:
    found, images = fuzz.Found(), fuzz.seeds(np.random.default_rng(1))
    for name, varieties in images.items():
        for number, data in enumerate(varieties):
            fuzz.compare(fuzz.attempt(data, found, f"{name} {number}"), fuzz.pillow(data), found, f"{name} {number}")
    assert faults(found) == {}
    assert set(found.outcomes) == {"ok"}


BOMBS = [
    "png_60000x60000",
    "png_iccp",
    "png_itxt",
    "png_ztxt",
    "png_exif_in_text",
    "png_many_texts",
    "png_a_million_chunks",
    "gif_a_million_frames",
    "gif_65535x65535",
    "webp_16384x16384",
    "webp_vp8l_16384x16384",
    "webp_16777216x256",
    "tiff_100000x100000",
    "tiff_big_gigapixels",
    "bmp_60000x60000",
    "bmp_run_lengths",
    "avif_60000x60000",
    "jpeg_65500x65500",
    "jpeg_20000_scans",
]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_reaches_no_decoder(bombs: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def explode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(confined, "decode", explode)
    monkeypatch.setattr("swav_platform.images.decoding.decode.plain_jpeg", explode)
    with pytest.raises(Refused) as refused:
        decode(bombs.BOMBS[name](), ImagePolicy())
    assert refused.value.outcome.word in ("too_many_pixels", "decode_memory", "decode_timeout")


def test_texts_that_do_not_inflate_too_far_are_no_bombs(bombs: ModuleType) -> None:
    for mebibytes in (1, 15):
        data = bombs.png(bombs.chunk(b"iCCP", b"icc\0\0" + bombs.zeros(mebibytes)))
        assert decode(data, ImagePolicy()).shape == (64, 64, 3)
    rough = np.random.default_rng(0).bytes(MAX_INFLATED // 2)
    assert decode(bombs.png(bombs.chunk(b"iTXt", b"k\0\0\0\0\0" + rough)), ImagePolicy()).shape == (64, 64, 3)


@pytest.mark.parametrize("cut", [0, 1, 8, 12, 20, 40])
def test_headers_that_end_early_tell_nothing(fuzz: ModuleType, cut: int) -> None:
    for varieties in fuzz.seeds(np.random.default_rng(2)).values():
        data = varieties[0]
        cost = cost_of(data, str(format_of(data)))
        assert cost is not None
        assert 16 <= cost.width < 90
        assert 16 <= cost.height < 90
        cost_of(data[:cut], str(format_of(data)))
