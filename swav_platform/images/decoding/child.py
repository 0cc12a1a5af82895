"""The process that decodes untrusted bytes for its parent: receives requests and answers them until its input ends.

A request holds the format, the policy and the image. An answer holds the outcome, and pixels or a thumbnail. An error in a codec
ends this process; its parent turns that into an outcome.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from swav_platform.child_process import ParentPipe
from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decoding.pillow import small_jpeg, to_rgb, with_pillow
from swav_platform.images.decoding.plain_jpeg import plain_jpeg
from swav_platform.images.decoding.refused import Refused
from swav_platform.images.decoding.sandbox import give_up
from swav_platform.malloc import keep_freed

Answer = tuple[dict[str, Any], Any]

_PLUGINS = ("Jpeg", "Mpo", "Png", "Gif", "Tiff", "Bmp", "WebP", "Avif")
"""Of Pillow's forty formats, the readers that are loaded."""


def main(memory: int) -> None:
    """Serves requests. memory: bytes of address space that decoding may add."""
    parent = ParentPipe()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    keep_freed(largest=2**25, total=2**26)  # taking an image's memory from the kernel again costs a millisecond
    _warm_up()
    give_up(memory)
    parent.ready()
    while message := parent.receive():
        request, image = message
        # CPU time, not wall-clock time: a busy machine must not change outcomes. The signal ends this process.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        head, pixels = answer(request, bytes(image))
        signal.setitimer(signal.ITIMER_PROF, 0)
        parent.send(head, pixels)
        del message, image, pixels


def answer(request: Mapping[str, Any], data: bytes) -> Answer:
    """The answer to a request for an image; never raises."""
    name, policy = request["format"], ImagePolicy(**request["policy"])
    try:
        if request["side"]:
            return {"outcome": Outcome.OK}, small_jpeg(data, name, policy, request["side"])
        plain = plain_jpeg(data, policy) if name == "JPEG" else None
        pixels = plain.pixels if plain else with_pillow(data, name, policy)
        return {"outcome": Outcome.OK, "shape": pixels.shape[:2]}, np.ascontiguousarray(pixels).data.cast("B")
    except Refused as refused:
        return {"outcome": refused.outcome, "detail": refused.detail}, b""
    except MemoryError:
        return {"outcome": Outcome.DECODE_MEMORY, "detail": f"{name} needs more memory than a decoder may use"}, b""
    except Exception as error:
        return {"outcome": Outcome.CORRUPT, "detail": f"{name}: {type(error).__name__}: {str(error)[:200]}"}, b""


def _warm_up() -> None:
    """Loads what Python and Pillow load on first use, because later no file can be opened."""
    for module in ("ImageCms", "ImageColor", "ImageFilter", "ImagePalette", *(f"{plugin}ImagePlugin" for plugin in _PLUGINS)):
        importlib.import_module(f"PIL.{module}")
    for name in ImagePolicy().formats:
        if name not in Image.SAVE:
            continue
        out, exif = BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (16, 8)).save(out, name, **({"exif": exif} if name in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
        request = {"format": name, "policy": {"min_side": 1, "truncated": "accept"}}
        for side in (0, 8):
            answer(request | {"side": side}, out.getvalue())
            answer(request | {"side": side}, out.getvalue()[:-8])
    for mode in ("LAB", "CMYK", "PA", "F"):
        to_rgb(Image.new(mode, (1, 1)))
