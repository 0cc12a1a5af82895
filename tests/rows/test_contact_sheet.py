"""The page of views: every view with what made it, from the code that makes rows."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swav_platform.cli.main import run
from swav_platform.images.views.params import COLUMN, ORDERS, PARAMS
from swav_platform.rows.contact_sheet import describe
from tests.makers import encoded, write_tar


def test_parameters_in_words() -> None:
    params = np.zeros(len(PARAMS), np.float32)
    assert describe(params) == "no image"
    values = {"left": 3, "top": 4, "width": 50, "height": 40, "source_width": 100, "source_height": 80, "flip": 1, "jitter": 1}
    values |= {"order": ORDERS.index((3, 0, 2, 1)), "brightness": 1.5, "contrast": 0.5, "saturation": 1, "hue": -0.1}
    for name, value in (values | {"grey": 1, "blur_sigma": 0.75, "solarise": 1}).items():
        params[COLUMN[name]] = value
    assert describe(params) == (
        "50×40 at (3, 4) of 100×80, flipped, hue -0.10, brightness ×1.50, saturation ×1.00, contrast ×0.50, grey, blur σ 0.75, solarised"
    )


def test_preview_shows_the_views_of_the_first_positions(
    shards: Path, tiny: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "views.html"
    config = str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")
    assert run(["pretrain", config, "--data", str(shards), *tiny, "--preview", str(page), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer == {"preview": str(page), "positions": 8, "bad": {}}
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<h2>Position (\d+) ", text) == [str(n) for n in range(8)]
    pictures = [Image.open(BytesIO(base64.b64decode(code))) for code in re.findall(r"png;base64,([^\"]+)", text)]
    assert [image.size for image in pictures[:4]] == [(16, 16), (16, 16), (8, 8), (8, 8)]
    assert len(pictures) == 8 * 4
    assert text.count('<figcaption class="g0">large 0: ') == 8
    assert text.count("<image ") == 8
    assert text.count("<title>large 0</title></rect>") == 8
    assert "min_side: 16" in text
    assert not (tmp_path / "runs").exists()


def test_preview_counts_each_bad_image_once_and_says_why(
    tiny: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = encoded(Image.new("RGB", (64, 48), "red"), "PNG")
    write_tar(tmp_path / "mixed.tar", [*((f"text-{number}.jpg", b"no image") for number in range(6)), ("good.jpg", good)])
    page = tmp_path / "views.html"
    config = str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")
    assert run(["pretrain", config, "--data", str(tmp_path / "mixed.tar"), *tiny, "--preview", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bad"] == {"not_an_image": 6}
    text = page.read_text(encoding="utf-8")
    assert "replaces text-" in text or "no usable image" in text
    assert "(not_an_image: starts with" in text


def test_boxes_lie_on_the_upright_image_where_the_views_were_cut(
    tiny: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red is what the upright image shows on its left, green at its top; every view's box, looked up in the picture of the page, has
    the view's colour."""
    left_red = np.zeros((48, 96, 3), np.uint8)
    left_red[:, :48, 0] = left_red[:, 48:, 2] = left_red[:24, :, 1] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(np.rot90(left_red), exif=exif, quality=95)
    write_tar(tmp_path / "one.tar", [(f"{number}.jpg", turned) for number in range(8)])
    page = tmp_path / "views.html"
    config = str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")
    plain = [f"views.{group}.photometric=none" for group in ("large", "small")]
    assert run(["pretrain", config, "--data", str(tmp_path / "one.tar"), *tiny, *plain, "--preview", str(page)]) == 0
    positions = page.read_text(encoding="utf-8").split("<h2>")[1:]
    assert len(positions) == 8
    for text in positions:
        assert '<svg viewBox="0 0 96 48"' in text
        jpeg = re.findall(r"jpeg;base64,([^\"]+)", text)[0]
        picture = np.asarray(Image.open(BytesIO(base64.b64decode(jpeg))).resize((96, 48))).astype(float)
        boxes = re.findall(r'x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', text)
        views = [np.asarray(Image.open(BytesIO(base64.b64decode(code)))) for code in re.findall(r"png;base64,([^\"]+)", text)]
        assert len(boxes) == len(views) == 4
        for (x, y, width, height), view in zip(np.int64(boxes), views, strict=True):
            cut = picture[y : y + height, x : x + width].mean((0, 1))
            np.testing.assert_allclose(cut, view.mean((0, 1)), atol=20)


def test_preview_of_nothing_that_can_be_used_says_so(
    tiny: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "text.tar", [(f"{number}.jpg", b"no image") for number in range(8)])
    page = tmp_path / "views.html"
    config = str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")
    assert run(["pretrain", config, "--data", str(tmp_path / "text.tar"), *tiny, "--preview", str(page)]) == 1
    assert "8 not_an_image" in capsys.readouterr().err
    assert "no usable image" in page.read_text(encoding="utf-8")
