"""From 16-bit, 32-bit and floating-point values to 8 bits, as `data.images.levels` says.

levels: `full`, the range of the type: 16-bit values have 0-65535; others get the first of 0-1, 0-255 and 0-65535 that holds them
all, else their minimum and maximum. `stretch`, the image's finite minimum and maximum. Or (low, high), the values of black and
white; values outside are clipped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageFile

Levels = Literal["full", "stretch"] | tuple[float, float]

_BAND = 2**20
"""Pixels that are converted at a time, so that a large image is not held in three forms at once."""

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_MIN_IS_WHITE = 0

_LOW_BYTES = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Pillow reads colours of 16 bits as their high bytes. Read in the other byte order, it gives their low bytes."""


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Horizontal parts of an image, each with its first row."""
    rows = max(1, _BAND // max(image.width, 1))
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def grey(image: Image.Image, levels: Levels) -> np.ndarray:
    """8 bits uint8 [H, W] of a loaded image for which is_deep_grey holds."""
    found = np.empty((image.height, image.width), np.uint8)
    unsigned = _is_unsigned(image)
    low, high = _of_full_range(image, unsigned) if levels == "full" else _ends(_values(image, unsigned), levels)
    top = 0
    for values in _values(image, unsigned):
        rows = found[top : top + len(values)]
        rows[...] = _unclipped(_finite(values), low, high) if levels == "full" else _clipped(values, low, high)
        top += len(values)
    if (
        levels != "full" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _MIN_IS_WHITE
    ):  # 8-bit TIFF: Pillow inverts it itself
        np.subtract(255, found, out=found)
    return found


def colour_of(image: ImageFile.ImageFile) -> str | None:
    """Pillow's raw mode of an opened image of 16-bit colours, None for any other."""
    for tile in image.tile[:1]:
        raw = tile.args if isinstance(tile.args, str) else tile.args[0] if tile.args else ""
        if isinstance(raw, str) and raw in ("LA;16B", *(f"{mode};16{order}" for mode in ("RGB", "RGBA") for order in _LOW_BYTES)):
            return raw
    return None


def colour(data: bytes, name: str, raw: str, levels: Levels) -> np.ndarray:
    """8 bits uint8 [H, W, 3] of an image of 16-bit colours; transparent pixels are blended onto white.

    Raises whatever Pillow raises.
    """
    mode, order = raw[:-4], raw[-1]
    with Image.open(BytesIO(data), formats=(name,)) as high, Image.open(BytesIO(data), formats=(name,)) as low:
        if mode == "LA":  # read as four bytes: those of the grey value, then those of alpha
            _set_raw(low, "RGBA")
        else:
            _set_raw(low, f"{mode};16{_LOW_BYTES[order]}")
            high.load()
        low.load()
        black, white = _ends((_sixteen_bits(*pair, mode) for pair in _pairs(high, low, mode)), levels)
        pixels = np.empty((low.height, low.width, 3), np.uint8)
        top = 0
        for pair in _pairs(high, low, mode):
            values, alpha = _sixteen_bits(*pair, mode), _alpha(*pair, mode)
            seen = _clipped(values, black, white)
            if alpha is not None:
                share = alpha[..., None].astype(np.float32) / 255
                seen = np.rint(seen * share + 255 * (1 - share)).astype(np.uint8)
            pixels[top : top + len(seen)] = seen
            top += len(seen)
    return pixels


def _set_raw(image: ImageFile.ImageFile, raw: str) -> None:
    image.tile = [t._replace(args=raw if isinstance(t.args, str) else (raw, *(t.args or ())[1:])) for t in image.tile]


def _pairs(high: Image.Image, low: Image.Image, mode: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for top, band in bands(low):
        bytes_below = np.asarray(band)
        above = bytes_below if mode == "LA" else np.asarray(high.crop((0, top, high.width, top + band.height)))
        yield above, bytes_below


def _sixteen_bits(high: np.ndarray, low: np.ndarray, mode: str) -> np.ndarray:
    """uint16 [h, W, C] of the colours; C = 1 or 3."""
    first, second = (high[..., :1], high[..., 1:2]) if mode == "LA" else (high[..., :3], low[..., :3])
    joined: np.ndarray = first.astype(np.uint16) << 8 | second
    return joined


def _alpha(high: np.ndarray, low: np.ndarray, mode: str) -> np.ndarray | None:
    return high[..., 2] if mode == "LA" else high[..., 3] if mode == "RGBA" else None


def _is_unsigned(image: Image.Image) -> bool:
    """Whether the values of a loaded image have 32 bits without a sign, which Pillow takes for signed ones."""
    tags = getattr(image, "tag_v2", {})
    return image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,))[:1] == (1,)


def _values(image: Image.Image, unsigned: bool) -> Iterator[np.ndarray]:
    for _, band in bands(image):
        yield np.asarray(band).view(np.uint32) if unsigned else np.asarray(band)


def _ends(parts: Iterator[np.ndarray], levels: Levels) -> tuple[float, float]:
    """The values of black and white."""
    if not isinstance(levels, str):
        return levels
    low, high = np.inf, -np.inf
    for values in parts:
        known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if known.size:
            low, high = min(low, float(known.min())), max(high, float(known.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _of_full_range(image: Image.Image, unsigned: bool) -> tuple[float, float]:
    if image.mode.startswith("I;16"):
        return 0, 65535
    ends = [(float(values.min()), float(values.max())) for values in map(_finite, _values(image, unsigned))]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    if low >= 0:
        for top in (1, 255, 65535):
            if high <= top:
                return 0, top
    return low, high


def _finite(values: np.ndarray) -> np.ndarray:
    if values.dtype.itemsize == 2:
        return values
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _unclipped(values: np.ndarray, low: float, high: float) -> np.ndarray:
    rounded: np.ndarray = np.rint((values - values.dtype.type(low)) * np.float32(255 / ((high - low) or 1))).astype(np.uint8)
    return rounded


def _clipped(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """What is no number is black. An image of one value is black too."""
    share = (values.astype(np.float64) - low) / ((high - low) or 1)
    return np.rint(np.clip(np.nan_to_num(share, nan=0, posinf=1, neginf=0), 0, 1) * 255).astype(np.uint8)
