"""What bytes claim to be, from their first and last ones. Nothing is decoded here."""

from __future__ import annotations

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"MM*\0", "TIFF"),
    (b"II\0*", "TIFF"),
    # Known image types that no policy can allow: the reason is better than "not an image".
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0\0\0\0\0", "TGA"),  # a cursor has one picture or more where this has none
    (b"\0\0\n\0\0\0\0\0", "TGA"),
    (b"\0\0\2\0", "CUR"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"8BPS", "Photoshop"),
    (b"v/1\x01", "OpenEXR"),
    (b"DDS ", "DDS"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"qoif", "QOI"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"farbfeld", "farbfeld"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"SIMPLE  =", "FITS"),
    (b"icns", "ICNS"),
    (b"\x8aMNG", "MNG"),
    (b"\n\5\1", "PCX"),
    (b"\1\xda", "SGI"),
    (b"BLP2", "BLP"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"<svg", "SVG"),
)


def format_of(data: bytes) -> str | None:
    """Name of the image format (Pillow's, where Pillow reads it), None for what is no image that we know of."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _boxed(data)
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "netpbm"
    if data.lstrip()[:5] == b"<?xml" and b"<svg" in data[:2048]:
        return "SVG"
    return None


def _boxed(data: bytes) -> str | None:
    """AVIF, HEIF or neither (a film), by the brands of an ISO base media file."""
    end = min(int.from_bytes(data[:4], "big"), 256, len(data))
    brands = {data[8:12]} | {data[start : start + 4] for start in range(16, end, 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"mif1", b"msf1", b"mif2", b"mif3"}:
        return "HEIF"
    return None


def ends_early(data: bytes, name: str) -> bool:
    """Whether the end that the format promises is missing. Asked once decoding has failed: cut off, or damaged?"""
    if name == "JPEG":
        return data.find(b"\xff\xd9", max(0, data.rfind(b"\xff\xda"))) < 0
    if name == "PNG":
        return b"IEND" not in data[-4096:]
    if name == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if name == "WEBP":
        return len(data) < 12 + 8 or int.from_bytes(data[4:8], "little") + 8 > len(data)
    if name == "BMP":
        return len(data) < 54 or int.from_bytes(data[2:6], "little") > len(data)
    if name == "TIFF":
        return len(data) < 8 or int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") >= len(data)
    if name == "AVIF":
        return _boxes_overrun(data)
    return False


def _boxes_overrun(data: bytes) -> bool:
    start = 0
    while start + 8 <= len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        if size == 1:
            size = int.from_bytes(data[start + 8 : start + 16], "big")
        if size < 8:  # 0 means: up to the end of the file
            return False
        start += size
    return start != len(data)
