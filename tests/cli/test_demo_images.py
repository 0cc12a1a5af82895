"""What the demo takes of images of the user's own, and how long it learns from them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
from PIL import Image

from swav_platform.cli.demo_images import FEWEST_STEPS, Shards, affordable_steps, own_images
from swav_platform.config import Train
from tests.makers import png_header, write_tar


def steps(folder: Path, image: bytes) -> int:
    folder.mkdir()
    return affordable_steps(
        Shards([write_tar(folder / "own.tar", [("x.png", image)])], None), folder / "index", Train(steps=400, batch=64)
    )


def test_large_images_are_learned_from_for_fewer_steps_and_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)  # as Pillow has it: it warns of more
    large = png_header(11_000, 10_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert steps(tmp_path / "large", large) == FEWEST_STEPS
        assert steps(tmp_path / "small", png_header(64, 48)) == 400
        assert not [w for w in caught if w.category is Image.DecompressionBombWarning]
        Image.open(io.BytesIO(large))
        assert [w for w in caught if w.category is Image.DecompressionBombWarning]


def test_tars_next_to_images_are_ignored_with_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.tar", "b.tar.gz"):
        (tmp_path / name).touch()
    (tmp_path / "x.png").write_bytes(png_header(64, 48))
    assert own_images(str(tmp_path), tmp_path / "demo").packed
    assert "tars (2) are ignored" in " ".join(capsys.readouterr().err.split())
