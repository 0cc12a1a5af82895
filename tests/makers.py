"""Makes tars and images for tests."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Files = Iterable[tuple[str, bytes]]
"""Names and contents of the members of a tar."""


def tar_bytes(files: Files, format: int = tarfile.GNU_FORMAT, *, end: bool = True) -> bytes:
    """A tar. end: with the blocks of zeros that close it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        length = buffer.tell()
    return buffer.getvalue() if end else buffer.getvalue()[:length]


def write_tar(path: Path, files: Files) -> str:
    """Writes a tar and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files))
    return str(path)


def encoded(image: Image.Image | np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    """An image, or uint8 pixels [height, width, 3], as the bytes of a file."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(seed: int, width: int = 48, height: int = 40, kind: str = "JPEG") -> bytes:
    """A smooth random image as the bytes of a file."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return encoded(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC), kind)


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header declares a size but which has only a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
