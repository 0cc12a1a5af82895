"""Small images and tars of many kinds, and mutations of them, reproducible from numbers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import numpy as np
from PIL import Image, features

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A synthetic photograph: smooth shapes with a little noise."""
    rough = Image.fromarray(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.integers(-9, 10, (height, width, 3))
    return Image.fromarray((np.asarray(rough) + noise).clip(0, 255).astype(np.uint8))


def seeds(rng: np.random.Generator) -> dict[str, list[bytes]]:
    """Images of 16 to 90 pixels by format, in each variety that Pillow can write."""
    return {name: _varieties(name, rng) for name in FORMATS if name != "WEBP" or features.check("webp")}


def _varieties(name: str, rng: np.random.Generator) -> list[bytes]:
    found = []

    def add(image: Image.Image, **options: object) -> None:
        out = io.BytesIO()
        image.save(out, name, **options)
        found.append(out.getvalue())

    def image(mode: str = "RGB") -> Image.Image:
        width, height = rng.integers(16, 90, 2)
        picture = photograph(rng, int(width), int(height))
        if mode in ("RGBA", "LA"):
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        return picture.convert(mode)

    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    frames = [image().resize((40, 30)) for _ in range(3)]
    if name == "JPEG":
        for mode in ("RGB", "L", "CMYK"):
            for options in ({}, {"progressive": True}, {"optimize": True, "restart_marker_rows": 1}):
                add(image(mode), **options)
        add(image(), subsampling=0, quality=95, exif=exif, icc_profile=bytes(3000))
        add(image(), comment=b"x" * 300, keep_rgb=True)
    elif name == "PNG":
        for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
            add(_deep(image("L")) if mode == "I;16" else image(mode))
        add(image("P"), transparency=3, exif=exif)
        add(image(), transparency=(1, 2, 3), icc_profile=bytes(9000), dpi=(72, 72))
        add(frames[0], save_all=True, append_images=frames[1:])
    elif name == "WEBP":
        for mode in ("RGB", "RGBA"):
            add(image(mode))
            add(image(mode), lossless=True)
            add(image(mode), quality=10, exif=exif)
        add(frames[0], save_all=True, append_images=frames[1:])
    elif name == "GIF":
        add(image("P"))
        add(image("L"), interlace=1)
        add(image("P"), transparency=5)
        add(frames[0], save_all=True, append_images=frames[1:], loop=0, disposal=2)
    else:
        for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "LAB"):
            add(image(mode))
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_deflate"):
            add(image(), compression=compression)
        add(_deep(image("L")))
        add(image("L").convert("F"))
        add(image(), big_tiff=True, exif=exif)
        add(frames[0], save_all=True, append_images=frames[1:])
    return found


def _deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 200)


def mutate(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Applies one to eight mutations: changed bits, bytes, integers; removed, repeated, random or foreign parts; truncation."""
    changed = bytearray(data)
    for _ in range(int(rng.choice((1, 1, 1, 2, 3, 5, 8)))):
        # Half of the mutations hit the header, which is small and matters most.
        at = int(rng.integers(0, max(1, min(len(changed), 200 if rng.random() < 0.5 else len(changed)))))
        length = int(rng.integers(1, 64))
        kind = int(rng.integers(0, 9))
        if kind <= 1 and at < len(changed):
            changed[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2 and at < len(changed):
            changed[at] = int(rng.choice((0, 1, 0x7F, 0x80, 0xFF)))
        elif kind == 3:
            size = int(rng.choice((2, 4)))
            number = int(rng.choice(_NUMBERS)) % 256**size
            changed[at : at + size] = number.to_bytes(size, "little" if rng.random() < 0.5 else "big")
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            changed[at:at] = changed[at : at + length] * int(rng.choice((1, 1, 2, 30)))
        elif kind == 6:
            changed[at:at] = rng.bytes(length)
        elif kind == 7:
            other = others[int(rng.integers(0, len(others)))]
            start = int(rng.integers(0, len(other)))
            changed[at : at + length] = other[start : start + int(rng.integers(1, 400))]
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def image_at(number: int, by_format: dict[str, list[bytes]]) -> bytes:
    """The number-th mutated image. Formats alternate."""
    rng = np.random.default_rng((1, number))
    names = list(by_format)
    name = names[number % len(names)]
    data = by_format[name][int(rng.integers(0, len(by_format[name])))]
    others = by_format[names[int(rng.integers(0, len(names)))] if rng.random() < 0.2 else name]
    return mutate(data, others, rng)


def tar_at(number: int, by_format: dict[str, list[bytes]]) -> bytes:
    """The number-th mutated tar: a dozen members in one of tar's formats, mutated mostly in headers."""
    rng = np.random.default_rng((2, number))
    out = io.BytesIO()
    dialect = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[number % 3]
    images = [data for of_format in by_format.values() for data in of_format]
    with tarfile.open(fileobj=out, mode="w", format=dialect) as tar:
        for place in range(12):
            long = "x" * (150 if place == 3 and dialect != tarfile.USTAR_FORMAT else 3)
            member = tarfile.TarInfo(f"{long}/{place:04d}.{('jpg', 'png', 'json', 'bin')[place % 4]}")
            content = images[int(rng.integers(0, len(images)))]
            member.size = len(content)
            if place == 7:
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "x", 0
            if dialect == tarfile.PAX_FORMAT and place % 3 == 0:
                member.pax_headers = {"comment": "y" * 40, "mtime": "1.5"}
            tar.addfile(member, io.BytesIO(content))
    data = bytearray(out.getvalue())
    for _ in range(int(rng.integers(1, 6))):
        block = int(rng.integers(0, len(data) // 512)) * 512
        heads = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
        at = heads[int(rng.integers(0, len(heads)))] if heads and rng.random() < 0.7 else block
        data[at : at + 512] = mutate(bytes(data[at : at + 512]), [bytes(data[block : block + 512])], rng)
        if rng.random() < 0.7:  # a correct checksum makes the reader accept the header
            head = data[at : at + 512]
            head[148:156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(head)
        if rng.random() < 0.05:
            del data[int(rng.integers(0, len(data))) :]
            break
    return bytes(data)
