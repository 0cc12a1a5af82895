"""Decodes ordinary JPEG with libjpeg-turbo alone, at full size or reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg

from swav_platform.config import ImagePolicy
from swav_platform.images.decoding import jpeg
from swav_platform.images.decoding.orientation import mirrored, upright
from swav_platform.images.decoding.refused import check_size


class Decoded(NamedTuple):
    """Upright pixels uint8 [h, w, 3] of an image of height x width pixels. Each pixel covers parts x parts of the image's.

    before: rows above and columns left of the image that the first pixels also cover, where parts does not divide its size.
    deep: the file has more than 8 bits a channel.
    """

    pixels: np.ndarray
    height: int
    width: int
    parts: int = 1
    before: tuple[int, int] = (0, 0)
    deep: bool = False


def whole(height: int, width: int) -> int:
    """The reduction that reduces nothing."""
    return 1


def plain_jpeg(data: bytes, policy: ImagePolicy, reduction: Callable[[int, int], int] = whole) -> Decoded | None:
    """Decodes a JPEG; None for an unusual one, which is left to Pillow. Raises Refused for a size outside the policy.

    reduction(height, width) of the upright image is 1, 2, 4 or 8.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        check_size(width, height, policy)
        if colours not in ("YCbCr", "Gray"):
            return None
        turned = jpeg.orientation(data)
        seen = (width, height) if turned >= 5 else (height, width)
        parts = reduction(*seen)
        least = (-(-height // parts), -(-width // parts)) if parts > 1 else (0, 0)
        pixels = upright(simplejpeg.decode_jpeg(data, "RGB", False, False, *least), turned)
        back = mirrored(turned)  # the file's last row or column, which may reach beyond the image, then comes first
        before = (back[0] * (len(pixels) * parts - seen[0]), back[1] * (pixels.shape[1] * parts - seen[1]))
        return Decoded(pixels, *seen, parts, before)
    except (ValueError, jpeg.Unusual):
        return None
