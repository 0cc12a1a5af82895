"""From bytes that anybody may have made to pixels, or to a reason why not.

Headers are read before anything is decoded, so that what is too big is refused for the price of a header.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError, features

from swav_platform.config import ImagePolicy
from swav_platform.data.outcomes import Outcome
from swav_platform.images.sniff import ends_early, format_of, webp_size

MAX_SCAN_PIXELS = 1_500_000_000
"""A JPEG of many scans goes over all its pixels for each: more work than this is a bomb of time."""

_ORIENTATION = 0x0112

# Pillow warns of what ends in an outcome here anyway, and once per image.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# A text or colour profile of a PNG may inflate to this much. Pillow's own limit, 1 MiB, refuses good photographs.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20


class Refused(Exception):
    """An image that gives no sample, with its outcome and what is known about the cause."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.outcome.word}: {self.detail}"


def decode(data: bytes, policy: ImagePolicy) -> np.ndarray:
    """Upright RGB pixels uint8 [H, W, 3] of an image's first frame; what is transparent lies on white.

    Ordinary JPEG is decoded by simplejpeg, everything else (and every JPEG that it does not like) by Pillow.
    Raises Refused, and nothing else, for bytes that give no sample under this policy.
    """
    if len(data) > policy.max_bytes:
        raise Refused(Outcome.TOO_MANY_BYTES, f"{len(data):,} bytes, more than max_bytes {policy.max_bytes:,}")
    name = format_of(data)
    if name is None:
        raise Refused(Outcome.NOT_AN_IMAGE, f"starts with {bytes(data[:12])!r}" if data else "no bytes")
    if name not in policy.formats:
        raise Refused(Outcome.UNSUPPORTED_FORMAT, f"{name} is not among the formats taken")
    try:
        pixels = _plain_jpeg(data, policy) if name == "JPEG" else None
        return pixels if pixels is not None else _anything(data, name, policy)
    except MemoryError:
        raise Refused(Outcome.DECODE_MEMORY, f"{name} needs more memory than there is") from None


def _plain_jpeg(data: bytes, policy: ImagePolicy) -> np.ndarray | None:
    """Pixels of a JPEG without peculiarities, None when Pillow should have a look at it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    check_size(width, height, policy)
    _check_scans(data, width, height)
    if colours not in ("YCbCr", "Gray"):
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    if b"Exif\0\0" in data or b"tiff:Orientation" in data:
        return upright(pixels, _jpeg_orientation(data))
    return pixels


def _check_scans(data: bytes, width: int, height: int) -> None:
    scans = data.count(b"\xff\xda")
    if scans * max(width * height, 2**16) > MAX_SCAN_PIXELS:
        raise Refused(Outcome.DECODE_TIMEOUT, f"{scans} scans over {width}x{height} pixels")


def _jpeg_orientation(data: bytes) -> int:
    try:
        with Image.open(BytesIO(data), formats=("JPEG",)) as image:
            return orientation(image)
    except Exception:  # an image whose metadata nobody can read stands as it is
        return 1


def _anything(data: bytes, name: str, policy: ImagePolicy) -> np.ndarray:
    try:
        return _with_pillow(data, name, policy)
    except Refused as refused:
        if refused.outcome is not Outcome.TRUNCATED or policy.truncated == "reject":
            raise
    with truncated_accepted():
        return _with_pillow(data, name, policy)


def _with_pillow(data: bytes, name: str, policy: ImagePolicy) -> np.ndarray:
    if name == "WEBP" and (size := webp_size(data)):
        check_size(*size, policy)
    if Image.MAX_IMAGE_PIXELS is not None and policy.max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = policy.max_pixels
    try:
        with Image.open(BytesIO(data), formats=(name,)) as image:
            check_size(*image.size, policy)
            if name == "JPEG":
                _check_scans(data, *image.size)
            image.load()
            return upright(to_rgb(image), orientation(image))
    except (Refused, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them raise
        raise _reason(error, data, name) from None


def _reason(error: Exception, data: bytes, name: str) -> Refused:
    unreadable = isinstance(error, UnidentifiedImageError)  # its message holds an address, different in each process
    text = f"{name}: " + ("its header can't be read" if unreadable else f"{type(error).__name__}: {str(error)[:200]}")
    if isinstance(error, Image.DecompressionBombError):
        return Refused(Outcome.TOO_MANY_PIXELS, text)
    if "too large for PngImagePlugin" in text or "Too much memory used in text chunks" in text:
        return Refused(Outcome.DECODE_MEMORY, text)
    if unreadable and name in ("WEBP", "AVIF") and not features.check(name.lower()):
        return Refused(Outcome.UNSUPPORTED_FORMAT, f"this Pillow is built without {name}")
    if isinstance(error, ImportError) or text.endswith("not available"):
        return Refused(Outcome.UNSUPPORTED_FORMAT, f"this Pillow is built without a part that it needs ({text})")
    if "truncated" in text.lower() or ends_early(data, name):
        return Refused(Outcome.TRUNCATED, text)
    return Refused(Outcome.CORRUPT, text)


def check_size(width: int, height: int, policy: ImagePolicy) -> None:
    """Raises Refused for an image of a size outside the policy."""
    if width * height >= policy.max_pixels:
        raise Refused(Outcome.TOO_MANY_PIXELS, f"{width}x{height} pixels, max_pixels is {policy.max_pixels:,}")
    if min(width, height) < policy.min_side:
        raise Refused(Outcome.TOO_SMALL, f"{width}x{height} pixels, min_side is {policy.min_side}")
    if max(width, height) > policy.max_aspect * min(width, height):
        raise Refused(Outcome.EXTREME_ASPECT, f"{width}x{height} pixels, max_aspect is {policy.max_aspect:g}")


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels uint8 [H, W, 3] of a loaded Pillow image of any mode; what is transparent lies on white."""
    if image.mode.startswith("I;16"):
        return _from_levels(np.asarray(image), 0, 65535)
    if image.mode in ("I", "F"):
        return _from_numbers(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _from_numbers(values: np.ndarray) -> np.ndarray:
    """Numbers without a declared range: 0-1, 8 or 16 bits if they fit and need it, else from the least to the greatest."""
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0:
        for top in (1, 255, 65535):
            if high <= top:
                return _from_levels(values, 0, top)
    return _from_levels(values, low, high)


def _from_levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    grey = np.rint((values - np.float32(low)) * np.float32(255 / ((high - low) or 1))).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1-8; 1 for none, a senseless one, or metadata that can't be read."""
    try:
        number = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return number if number in range(1, 9) else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, 3] stored under an EXIF orientation, as they should be seen."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    vertical = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    horizontal = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[vertical, horizontal])


class _TruncatedAccepted(threading.local):
    """Stands for Pillow's LOAD_TRUNCATED_IMAGES, a global of the process, with a value of its own in each thread."""

    value = False

    def __bool__(self) -> bool:
        return self.value


_accepted = _TruncatedAccepted()


@contextmanager
def truncated_accepted() -> Iterator[None]:
    """Within it, and in this thread alone, Pillow fills up images that end early instead of raising."""
    ImageFile.LOAD_TRUNCATED_IMAGES = _accepted  # type: ignore[assignment]
    _accepted.value = True
    try:
        yield
    finally:
        _accepted.value = False


def thumbnail(data: bytes, side: int = 96) -> bytes | None:
    """A small JPEG of whatever can be decoded of an image, for people to look at; None if nothing can. Never raises."""
    name = format_of(data)
    if name not in ImagePolicy().formats or len(data) > ImagePolicy().max_bytes:
        return None
    try:
        with truncated_accepted():
            return _small_jpeg(data, name, side)
    except Exception:
        return None


def _small_jpeg(data: bytes, name: str, side: int) -> bytes:
    policy = ImagePolicy(min_side=1, max_aspect=1e9)
    if name == "WEBP" and (size := webp_size(data)):
        check_size(*size, policy)
    with Image.open(BytesIO(data), formats=(name,)) as image:
        check_size(*image.size, policy)
        image.draft("RGB", (side, side))
        image.load()
        small = Image.fromarray(upright(to_rgb(image), orientation(image)))
    small.thumbnail((side, side))
    out = BytesIO()
    small.save(out, "JPEG", quality=75)
    return out.getvalue()


def codec_fingerprint() -> str:
    """What decodes here, with versions: two machines with one fingerprint get the same pixels from the same bytes."""
    found = [f"pillow-{features.version('pil')}", f"simplejpeg-{simplejpeg.__version__}"]
    for codec in ("jpg", "libjpeg_turbo", "zlib", "libtiff", "webp", "avif"):
        found.append(f"{codec}-{features.version(codec) or 'none'}")
    return " ".join(found)
