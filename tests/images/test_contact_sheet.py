"""The sheet holds each image in its cell."""

from __future__ import annotations

import numpy as np

from swav_platform.images.contact_sheet import contact_sheet


def test_images_lie_in_their_cells() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (99, 0, 99)]
    shapes = [(32, 32), (100, 50), (30, 300), (1, 1), (200, 200)]
    images = [np.full((*shape, 3), colour, np.uint8) for shape, colour in zip(shapes, colours, strict=True)]
    sheet = np.asarray(contact_sheet(images, columns=3, cell=40))
    assert sheet.shape == (2 * 44 + 4, 3 * 44 + 4, 3)
    for number, colour in enumerate(colours):
        top, left = 4 + number // 3 * 44, 4 + number % 3 * 44
        assert (sheet[top + 20, left + 20] == colour).all()
        cell = sheet[top : top + 40, left : left + 40].reshape(-1, 3)
        assert {tuple(pixel) for pixel in cell.tolist()} <= {colour, (255, 255, 255)}
    assert (sheet[48:, 96:] == 255).all()


def test_no_images() -> None:
    assert contact_sheet([], columns=4, cell=10).size == (60, 18)
