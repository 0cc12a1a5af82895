"""Images as callers give them, and their division into requests that the service takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from swav_platform.errors import UsageError

Image = str | Path | bytes | tuple[str, bytes]
"""A file, the content of an image file, or a name and the content."""

Named = tuple[str, bytes]

MOST_BYTES = 32 * 2**20
"""Of a request with several images."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".heic"})
"""Files of a folder that are taken for images."""


def parts(images: Iterable[Image], most: int) -> Iterator[list[Named]]:
    """Names and contents, at most `most` images and about MOST_BYTES at a time. Raises UsageError for a file that cannot be read."""
    part: list[Named] = []
    size = 0
    for number, image in enumerate(images):
        name, data = _named(image, number)
        if part and (len(part) == most or size + len(data) > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append((name, data))
        size += len(data)
    if part:
        yield part


def expand(images: str | Path | Iterable[Image]) -> Iterable[Image]:
    """The images of a folder and of its folders, by name; anything else as it is. Raises UsageError if there are none."""
    if not isinstance(images, str | Path):
        return images
    if not Path(images).is_dir():
        return [images]
    found = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UsageError(f"There are no images in {images}: no file name ends in {', '.join(sorted(SUFFIXES))}.")
    return found


def _named(image: Image, number: int) -> Named:
    if isinstance(image, bytes):
        return f"image-{number}", image
    if isinstance(image, tuple):
        return image
    try:
        data = Path(image).read_bytes()
    except OSError as error:
        raise UsageError(
            f"Cannot read the image {str(image)!r} ({error.strerror}). Check the path and its permissions."
        ) from None
    return os.fsencode(Path(image).name).decode("utf-8", "backslashreplace"), data  # a header of HTTP is text
