"""Names of tar members: the key of the sample, the extension, and whether the member is an image."""

from __future__ import annotations

DECODED = {"jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "avifs"}
IMAGES = DECODED | {"heic", "heif", "jxl", "jp2", "j2k", "jpx", "ico", "cur", "ppm", "pgm", "pbm", "pnm", "tga"}
"""Extensions of images, including types that are not decoded: these appear in the ledger instead of disappearing."""

COMPANIONS = frozenset(
    ("json", "txt", "cls", "csv", "tsv", "xml", "yaml", "html", "npy", "npz", "pt", "pth", "parquet", "mp4", "wav")
)
"""Extensions that are never images, so the content of these files is not checked."""


def text(name: bytes) -> str:
    """A name as text. Bytes that are not valid UTF-8 become %XX."""
    decoded = name.decode("utf-8", "surrogateescape")
    if decoded.isascii():
        return decoded
    return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in decoded)


def sample_key(name: bytes) -> bytes:
    """Everything before the first dot of the base name, as WebDataset groups members; without a dot, the whole name."""
    dot = name.find(b".", name.rfind(b"/") + 2)
    return name if dot < 0 else name[:dot]


def extension(name: bytes) -> str:
    """The part after the last dot of the base name, in lower case; "" without a dot."""
    base = name[name.rfind(b"/") + 1 :]
    dot = base.rfind(b".")
    return text(base[dot + 1 :]).lower() if dot >= 0 else ""


def without_extension(name: bytes) -> bytes:
    """Everything before the last dot of the base name."""
    dot = name.rfind(b".", name.rfind(b"/") + 2)
    return name if dot < 0 else name[:dot]


def is_hidden(name: bytes) -> bool:
    """Whether a file is hidden or desktop metadata: .DS_Store, ._photo.jpg, __MACOSX/."""
    return name[name.rfind(b"/") + 1 :].startswith(b".") or b"__MACOSX/" in name


def kind_of(head: bytes) -> str | None:
    """The image extension that the first 16 bytes of a file speak for, or None."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "bmp"
    if head[4:8] == b"ftyp":
        return {b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heif"}.get(head[8:12])
    return None


_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\0\0\0\x0cJXL ", "jxl"),
    (b"\0\0\0\x0cjP  ", "jp2"),
)
