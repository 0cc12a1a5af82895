"""The process that decodes what its parent would rather not: reads requests from a pipe, answers on another, for ever.

A message is two lengths (uint32), a JSON object and bytes. A request holds the format, the policy and the image; an
answer the outcome, and pixels or a thumbnail. Errors in codecs end this process; its parent makes that an outcome.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decoding.decode import plain_jpeg
from swav_platform.images.decoding.pillow import small_jpeg, to_rgb, with_pillow
from swav_platform.images.decoding.refused import Refused
from swav_platform.images.decoding.sandbox import give_up
from swav_platform.malloc import keep_freed

LENGTHS = struct.Struct("<II")
Answer = tuple[dict[str, Any], Any]

_PLUGINS = ("Jpeg", "Mpo", "Png", "Gif", "Tiff", "Bmp", "WebP", "Avif")
"""Of Pillow's forty formats, the readers that are loaded."""


def serve(memory: int) -> None:
    """Answers on standard output until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the parent, whose end closes the pipe
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    keep_freed(largest=2**25, total=2**26)  # getting an image's memory anew costs a millisecond
    _warm_up()
    give_up(memory)
    _write(b"up")
    while lengths := _read(LENGTHS.size):
        size, length = LENGTHS.unpack(lengths)
        request = json.loads(_read(size))
        image = bytes(_read(length))
        # Of the processor's time, not the clock's: a busy machine must not change outcomes. Its signal ends the process.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        head, pixels = answer(request, image)
        signal.setitimer(signal.ITIMER_PROF, 0)
        text = json.dumps(head).encode()
        _write(LENGTHS.pack(len(text), len(pixels)) + text)
        _write(pixels)
        del image, pixels


def answer(request: Mapping[str, Any], data: bytes) -> Answer:
    """What there is to say of an image; never raises."""
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
        return {"outcome": Outcome.DECODE_MEMORY, "detail": f"{name} needs more memory than a decoder gets"}, b""
    except Exception as error:
        return {"outcome": Outcome.CORRUPT, "detail": f"{name}: {type(error).__name__}: {str(error)[:200]}"}, b""


def _warm_up() -> None:
    """Loads what Python and Pillow load on first use: later no file can be opened."""
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


def _read(size: int) -> bytearray:
    """So many bytes, or none at the end of the input."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        got = os.readv(0, [view[at:]])
        if not got:
            return bytearray()
        at += got
    return data


def _write(data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
