"""From bytes that anybody may have made to pixels, or to a reason why not.

Headers are read before anything is decoded, so that what is too big is refused for the price of a header. Ordinary
JPEG is decoded here, by libjpeg-turbo alone; all other bytes go to a child that has nothing to lose (docs/security.md).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import features

from swav_platform.config import FORMATS, ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decoding import confined, jpeg
from swav_platform.images.decoding.confined import NoDecoderError
from swav_platform.images.decoding.header import Cost, cost_of
from swav_platform.images.decoding.pillow import AVIF, mirrored, upright
from swav_platform.images.decoding.refused import Refused, check_size
from swav_platform.images.decoding.sniff import format_of

__all__ = ["Decoded", "NoDecoderError", "Refused", "codec_fingerprint", "decode", "decode_reduced", "thumbnail"]

SUSPECT_SECONDS = 0.5
SUSPECT_MEMORY = 256 * 2**20
"""Estimated cost from which on even a JPEG is decoded by the child."""


class Decoded(NamedTuple):
    """Upright pixels uint8 [h, w, 3] of an image of height x width pixels, each of which covers parts x parts of the image's.

    before: rows above and columns left of the image that the first pixels also cover, where parts does not divide its size.
    """

    pixels: np.ndarray
    height: int
    width: int
    parts: int = 1
    before: tuple[int, int] = (0, 0)


def decode(data: bytes, policy: ImagePolicy) -> np.ndarray:
    """Upright RGB pixels uint8 [H, W, 3] of an image's first frame; what is transparent lies on white.

    Ordinary JPEG is decoded by simplejpeg, everything else (and every JPEG that it does not like) by Pillow in a child.
    Raises Refused for bytes that give no sample under this policy, and NoDecoderError where the child can't be started: the
    machine's fault, not the image's.
    """
    return decode_reduced(data, policy, _whole).pixels


def decode_reduced(data: bytes, policy: ImagePolicy, reduction: Callable[[int, int], int]) -> Decoded:
    """As decode, but a JPEG may be decoded at a half, a quarter or an eighth of its height and width.

    reduction(height, width) of the upright image says at which: 1, 2, 4 or 8.
    """
    if len(data) > policy.max_bytes:
        raise Refused(Outcome.TOO_MANY_BYTES, f"{len(data):,} bytes, more than max_bytes {policy.max_bytes:,}")
    name = format_of(data)
    if name is None:
        raise Refused(Outcome.NOT_AN_IMAGE, f"starts with {bytes(data[:12])!r}" if data else "no bytes")
    if name not in policy.formats:
        why = "is closed by data.images.formats" if name in FORMATS else "is no format that can be decoded here: convert it"
        raise Refused(Outcome.UNSUPPORTED_FORMAT, f"{name} {why}")
    try:
        cost = cost_of(data, name)
        if cost is not None:
            check_size(cost.width, cost.height, policy)
            cost.check()
        decoded = plain_jpeg(data, policy, reduction) if name == "JPEG" and _is_cheap(cost) else None
        if decoded is not None:
            return decoded
        pixels = confined.decode(data, name, policy)
        return Decoded(pixels, *pixels.shape[:2])
    except MemoryError:
        raise Refused(Outcome.DECODE_MEMORY, f"{name} needs more memory than there is") from None


def _is_cheap(cost: Cost | None) -> bool:
    return cost is not None and cost.seconds < SUSPECT_SECONDS and cost.memory < SUSPECT_MEMORY


def _whole(height: int, width: int) -> int:
    return 1


def plain_jpeg(data: bytes, policy: ImagePolicy, reduction: Callable[[int, int], int] = _whole) -> Decoded | None:
    """A JPEG without peculiarities, None when Pillow should have a look at it. Raises Refused by its size."""
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
        back = mirrored(turned)  # what the last row or column of the file covers beyond the image then comes first
        before = (back[0] * (len(pixels) * parts - seen[0]), back[1] * (pixels.shape[1] * parts - seen[1]))
        return Decoded(pixels, *seen, parts, before)
    except (ValueError, jpeg.Unusual):
        return None


def thumbnail(data: bytes, policy: ImagePolicy, side: int = 96) -> bytes | None:
    """A small JPEG of whatever can be decoded of an image, of any size or shape, for people to look at; None if nothing can.

    What the policy closes (formats, bytes, pixels) stays closed. Raises NoDecoderError, and nothing else.
    """
    policy = policy.model_copy(update={"min_side": 1, "max_aspect": 1e9})
    name = format_of(data)
    if name not in policy.formats or len(data) > policy.max_bytes:
        return None
    try:
        cost = cost_of(data, name)
        if cost is not None:
            check_size(cost.width, cost.height, policy)
            cost.check()
        return confined.thumbnail(data, name, policy, side)
    except (Refused, MemoryError):
        return None


def codec_fingerprint() -> str:
    """What decodes and resizes here, with versions: two machines with one fingerprint get the same pixels from the same bytes."""
    found = [f"pillow-{features.version('pil')}", f"simplejpeg-{simplejpeg.__version__}"]
    for codec in ("jpg", "libjpeg_turbo", "zlib", "libtiff", "webp"):
        found.append(f"{codec}-{features.version(codec) or 'none'}")
    found.append(f"avif-{AVIF._avif.libavif_version if AVIF.SUPPORTED else 'none'}")
    found.append(f"numba-{importlib.metadata.version('numba') if importlib.util.find_spec('numba') else 'none'}")
    return " ".join(found)
