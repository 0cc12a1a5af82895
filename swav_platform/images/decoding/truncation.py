"""Whether a file lacks the end that its format requires."""

from __future__ import annotations


def ends_early(data: bytes, name: str) -> bool:
    """Whether a file of this format is cut off. Called after decoding has failed, to tell truncated from damaged files."""
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
        if size < 8:  # 0: the box extends to the end of the file
            return False
        start += size
    return start != len(data)
