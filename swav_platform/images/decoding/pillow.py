"""Decoding with Pillow: every format but ordinary JPEG, and unusual JPEG.

These functions run codecs that have had errors on untrusted bytes. They run in the child process (`confined.py`); a process that
holds credentials must not call them on such bytes.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile, ImagePalette, PngImagePlugin, UnidentifiedImageError, features

from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decoding import deep
from swav_platform.images.decoding.header import MAX_INFLATED, refuse_fax
from swav_platform.images.decoding.orientation import upright
from swav_platform.images.decoding.refused import Refused, check_size
from swav_platform.images.decoding.truncation import ends_early

_ORIENTATION = 0x0112
_FAX = ("group3", "group4", "tiff_ccitt", "tiff_raw_16")
_COLOUR_MAP = 320

# Pillow warns once per image of things that become outcomes here.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

PngImagePlugin.MAX_TEXT_CHUNK = MAX_INFLATED

if not features.check("avif"):
    with suppress(ImportError):
        import pillow_avif  # noqa: F401  replaces the reader of a Pillow that was built without AVIF
AVIF: Any = sys.modules.get("pillow_avif.AvifImagePlugin") or AvifImagePlugin
AVIF.DEFAULT_MAX_THREADS = 1  # the child can't start threads


def with_pillow(data: bytes, name: str, policy: ImagePolicy) -> np.ndarray:
    """Upright RGB pixels uint8 [H, W, 3] of the first frame. Raises Refused, or MemoryError."""
    try:
        return _strictly(data, name, policy)
    except Refused as refused:
        if refused.outcome is not Outcome.TRUNCATED or policy.truncated == "reject":
            raise
    with truncated_accepted():
        return _strictly(data, name, policy)


def _strictly(data: bytes, name: str, policy: ImagePolicy) -> np.ndarray:
    if Image.MAX_IMAGE_PIXELS is not None and policy.max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = policy.max_pixels
    try:
        with Image.open(BytesIO(data), formats=(name,)) as image:
            check_size(*image.size, policy)
            _check_compression(image)
            _widen_colour_map(image)
            if policy.levels != "full" and (raw := deep.colour_of(image)):
                return upright(deep.colour(data, name, raw, policy.levels), orientation(image))
            image.load()
            return upright(to_rgb(image, policy.levels), orientation(image))
    except (Refused, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them raise
        raise _reason(error, data, name) from None


def _check_compression(image: Image.Image) -> None:
    if getattr(image, "_compression", "") in _FAX:
        refuse_fax()


def _widen_colour_map(image: Image.Image) -> None:
    """Colour maps of TIFF have 16 bits. Some programs write 8, and Pillow would take those colours for black.

    libtiff takes a map for one of 8 bits if all of its entries are below 256.
    """
    entries = getattr(image, "tag_v2", {}).get(_COLOUR_MAP) if image.mode in ("P", "PA") else None
    if entries and max(entries) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(entries))


def _reason(error: Exception, data: bytes, name: str) -> Refused:
    unreadable = isinstance(error, UnidentifiedImageError)  # its message holds an address, which differs between processes
    text = f"{name}: " + ("its header can't be read" if unreadable else f"{type(error).__name__}: {str(error)[:200]}")
    if isinstance(error, Image.DecompressionBombError):
        return Refused(Outcome.TOO_MANY_PIXELS, text)
    if "too large for PngImagePlugin" in text or "Too much memory used in text chunks" in text:
        return Refused(Outcome.DECODE_MEMORY, text)
    if unreadable and not has_codec(name):
        return Refused(Outcome.UNSUPPORTED_FORMAT, f"this Pillow was built without {name}")
    if isinstance(error, ImportError) or text.endswith("not available"):
        return Refused(Outcome.UNSUPPORTED_FORMAT, f"this Pillow was built without a required part ({text})")
    if "truncated" in text.lower() or ends_early(data, name):
        return Refused(Outcome.TRUNCATED, text)
    return Refused(Outcome.CORRUPT, text)


def has_codec(name: str) -> bool:
    """Whether this Pillow has a decoder for a format; only AVIF and WebP are optional."""
    return bool(AVIF.SUPPORTED) if name == "AVIF" else name != "WEBP" or bool(features.check("webp"))


def to_rgb(image: Image.Image, levels: deep.Levels = "full") -> np.ndarray:
    """Pixels uint8 [H, W, 3] of a loaded Pillow image of any mode; transparent pixels are blended onto white."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    if deep.is_deep_grey(image):
        pixels[...] = deep.grey(image, levels)[:, :, None]
        return pixels
    for top, band in deep.bands(image):
        pixels[top : top + band.height] = _on_white(band)
    return pixels


def _on_white(image: Image.Image) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1-8; 1 where it is missing, invalid or unreadable."""
    try:
        number = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return number if number in range(1, 9) else 1


class _TruncatedAccepted(threading.local):
    """Replaces Pillow's process-wide LOAD_TRUNCATED_IMAGES by a value for each thread."""

    value = False

    def __bool__(self) -> bool:
        return self.value


_accepted = _TruncatedAccepted()


@contextmanager
def truncated_accepted() -> Iterator[None]:
    """Within this context, and in this thread only, Pillow pads truncated images instead of raising."""
    ImageFile.LOAD_TRUNCATED_IMAGES = _accepted  # type: ignore[assignment]
    _accepted.value = True
    try:
        yield
    finally:
        _accepted.value = False


def small_jpeg(data: bytes, name: str, policy: ImagePolicy, side: int) -> bytes:
    """A JPEG of at most `side` pixels of whatever can be decoded of an image. Raises whatever Pillow raises."""
    with truncated_accepted(), Image.open(BytesIO(data), formats=(name,)) as image:
        check_size(*image.size, policy)
        _check_compression(image)
        _widen_colour_map(image)
        image.draft("RGB", (side, side))
        image.load()
        small = Image.fromarray(upright(to_rgb(image, policy.levels), orientation(image)))
    small.thumbnail((side, side))
    out = BytesIO()
    small.save(out, "JPEG", quality=75)
    return out.getvalue()
