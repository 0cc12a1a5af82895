"""Decodes untrusted bytes to pixels, or raises the reason why not.

Headers are read before anything is decoded, so that an image that is too large costs only its header. Ordinary JPEG is decoded in
this process, by libjpeg-turbo alone. All other bytes go to a confined child process (docs/security.md).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import features

from swav_platform.config import FORMATS, ImagePolicy
from swav_platform.data.index.magic import format_of
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decoding import confined
from swav_platform.images.decoding.confined import NoDecoderError
from swav_platform.images.decoding.header import Cost, cost_of
from swav_platform.images.decoding.pillow import AVIF
from swav_platform.images.decoding.plain_jpeg import Decoded, plain_jpeg, whole
from swav_platform.images.decoding.refused import Refused, check_size

__all__ = ["Decoded", "NoDecoderError", "Refused", "codec_fingerprint", "decode", "decode_reduced", "thumbnail"]

SUSPECT_SECONDS = 0.5
SUSPECT_MEMORY = 256 * 2**20
"""Estimated cost from which on even a JPEG is decoded by the child."""


def decode(data: bytes, policy: ImagePolicy) -> np.ndarray:
    """Upright RGB pixels uint8 [H, W, 3] of an image's first frame; transparent pixels are blended onto white.

    simplejpeg decodes ordinary JPEG; Pillow, in a child process, decodes all else and unusual JPEG. Raises Refused for bytes that
    give no sample under this policy, and NoDecoderError where no child can be started, which is not the image's fault.
    """
    return decode_reduced(data, policy, whole).pixels


def decode_reduced(data: bytes, policy: ImagePolicy, reduction: Callable[[int, int], int]) -> Decoded:
    """As decode, but a JPEG may be decoded at a half, a quarter or an eighth of its height and width.

    reduction(height, width) of the upright image returns 1, 2, 4 or 8.
    """
    if len(data) > policy.max_bytes:
        raise Refused(Outcome.TOO_MANY_BYTES, f"{len(data):,} bytes, more than max_bytes {policy.max_bytes:,}")
    name = format_of(data)
    if name is None:
        raise Refused(Outcome.NOT_AN_IMAGE, f"starts with {bytes(data[:12])!r}" if data else "no bytes")
    if name not in policy.formats:
        why = "is not in data.images.formats" if name in FORMATS else "can't be decoded here: convert it"
        raise Refused(Outcome.UNSUPPORTED_FORMAT, f"{name} {why}")
    try:
        cost = cost_of(data, name)
        if cost is not None:
            check_size(cost.width, cost.height, policy)
            cost.check(policy)
        decoded = plain_jpeg(data, policy, reduction) if name == "JPEG" and _is_cheap(cost) else None
        if decoded is not None:
            return decoded
        pixels = confined.decode(data, name, policy)
        height, width, _ = pixels.shape
        return Decoded(pixels, height, width, deep=cost is not None and cost.deep)
    except MemoryError:
        raise Refused(Outcome.DECODE_MEMORY, f"{name} needs more memory than there is") from None


def _is_cheap(cost: Cost | None) -> bool:
    return cost is not None and cost.seconds < SUSPECT_SECONDS and cost.memory < SUSPECT_MEMORY


def thumbnail(data: bytes, policy: ImagePolicy, side: int = 96) -> bytes | None:
    """A small JPEG of whatever can be decoded of an image, of any size or shape, for people to look at; None if nothing can.

    The policy's formats, bytes and pixels hold here too. Raises only NoDecoderError.
    """
    policy = policy.model_copy(update={"min_side": 1, "max_aspect": 1e9})
    name = format_of(data)
    if name not in policy.formats or len(data) > policy.max_bytes:
        return None
    try:
        cost = cost_of(data, name)
        if cost is not None:
            check_size(cost.width, cost.height, policy)
            cost.check(policy)
        return confined.thumbnail(data, name, policy, side)
    except (Refused, MemoryError):
        return None


def codec_fingerprint() -> str:
    """The decoders and the resizer, with versions. Machines with equal fingerprints get equal pixels from equal bytes."""
    found = [f"pillow-{features.version('pil')}", f"simplejpeg-{simplejpeg.__version__}"]
    for codec in ("jpg", "libjpeg_turbo", "zlib", "libtiff", "webp"):
        found.append(f"{codec}-{features.version(codec) or 'none'}")
    found.append(f"avif-{AVIF._avif.libavif_version if AVIF.SUPPORTED else 'none'}")
    found.append(f"numba-{importlib.metadata.version('numba')}")
    return " ".join(found)
