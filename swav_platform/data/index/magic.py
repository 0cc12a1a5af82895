"""Image formats by their first bytes. One table serves the index, which needs extensions, and the decoders, which need formats."""

from __future__ import annotations

_MAGIC: tuple[tuple[bytes, str, str | None], ...] = (
    # First bytes; format (Pillow's name where Pillow reads it); extension that the index gives to a member with such bytes.
    # An extension, once given, is part of stored indexes: do not add or change one.
    (b"\xff\xd8\xff", "JPEG", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "PNG", "png"),
    (b"GIF87a", "GIF", "gif"),
    (b"GIF89a", "GIF", "gif"),
    (b"BM", "BMP", None),  # two bytes are too few for the index: see extension_of
    (b"II*\0", "TIFF", "tif"),
    (b"MM\0*", "TIFF", "tif"),
    (b"II+\0", "TIFF", None),
    (b"MM\0+", "TIFF", None),
    (b"MM*\0", "TIFF", None),
    (b"II\0*", "TIFF", None),
    # Formats that are never decoded. Naming them gives a better reason than "not an image".
    (b"\0\0\1\0", "ICO", None),
    (b"\0\0\2\0\0\0\0\0", "TGA", None),  # a cursor has its number of pictures, at least one, where this has zeros
    (b"\0\0\n\0\0\0\0\0", "TGA", None),
    (b"\0\0\2\0", "CUR", None),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", "jp2"),
    (b"\xff\x4f\xff\x51", "JPEG 2000", None),
    (b"\xff\x0a", "JPEG XL", None),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "jxl"),
    (b"II\xbc", "JPEG XR", None),
    (b"8BPS", "Photoshop", None),
    (b"v/1\x01", "OpenEXR", None),
    (b"DDS ", "DDS", None),
    (b"%!PS", "PostScript", None),
    (b"\xc5\xd0\xd3\xc6", "PostScript", None),
    (b"qoif", "QOI", None),
    (b"#?RADIANCE", "Radiance HDR", None),
    (b"BPG\xfb", "BPG", None),
    (b"FLIF", "FLIF", None),
    (b"farbfeld", "farbfeld", None),
    (b"\x59\xa6\x6a\x95", "Sun raster", None),
    (b"SIMPLE  =", "FITS", None),
    (b"icns", "ICNS", None),
    (b"\x8aMNG", "MNG", None),
    (b"\n\5\1", "PCX", None),
    (b"\1\xda", "SGI", None),
    (b"BLP2", "BLP", None),
    (b"\xd7\xcd\xc6\x9a", "WMF", None),
    (b"<svg", "SVG", None),
)

_BRANDS: dict[bytes, tuple[str, str | None]] = {
    # Brands of an ISO base media file; others are of films.
    b"avif": ("AVIF", "avif"),
    b"avis": ("AVIF", "avif"),
    b"heic": ("HEIF", "heic"),
    b"heix": ("HEIF", "heic"),
    b"mif1": ("HEIF", "heif"),
} | dict.fromkeys((b"hevc", b"heim", b"heis", b"hevm", b"msf1", b"mif2", b"mif3"), ("HEIF", None))


def format_of(data: bytes) -> str | None:
    """Name of an image's format by the bytes of the file, None for anything else."""
    for magic, name, _ in _MAGIC:
        if data.startswith(magic):
            return name
    if _is_webp(data):
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _boxed(data)
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "netpbm"
    if data.lstrip()[:5] == b"<?xml" and b"<svg" in data[:2048]:
        return "SVG"
    return None


def extension_of(head: bytes) -> str | None:
    """Extension of an image by the first 16 bytes of the file, None for anything else.

    Stricter than `format_of`, because any member of a tar whose name says nothing is tested.
    """
    for magic, _, extension in _MAGIC:
        if extension is not None and head.startswith(magic):
            return extension
    if _is_webp(head):
        return "webp"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "bmp"
    return _BRANDS.get(head[8:12], ("", None))[1] if head[4:8] == b"ftyp" else None


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _boxed(data: bytes) -> str | None:
    """AVIF, HEIF or None (a film), by the major and the compatible brands. AVIF wins over HEIF."""
    end = min(int.from_bytes(data[:4], "big"), 256, len(data))
    brands = {data[8:12]} | {data[start : start + 4] for start in range(16, end, 4)}
    names = {_BRANDS[brand][0] for brand in brands if brand in _BRANDS}
    return min(names, default=None)
