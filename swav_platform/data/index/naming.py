"""Names of tar members: the key of the sample, the extension, and whether the member is an image."""

from __future__ import annotations

DECODED = {"jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "avifs"}
IMAGES = DECODED | {"heic", "heif", "jxl", "jp2", "j2k", "jpx", "ico", "cur", "ppm", "pgm", "pbm", "pnm", "tga"}
"""Extensions of images, including types that are not decoded: these appear in the ledger instead of disappearing."""

COMPANIONS = frozenset(
    ("json", "txt", "cls", "csv", "tsv", "xml", "yaml", "html", "npy", "npz", "pt", "pth", "parquet", "mp4", "wav")
)
"""Extensions that are never images, so the content of these files is not checked."""


TARS = (b".tar", b".tar.gz", b".tgz", b".tar.bz2", b".tar.xz", b".tar.zst")


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


def whole_extension(name: bytes) -> str:
    """The part of a name after its key, in lower case: `seg.png` of `a/0001.seg.png`."""
    return text(name[len(sample_key(name)) + 1 :]).lower()


def without_extension(name: bytes) -> bytes:
    """Everything before the last dot of the base name."""
    dot = name.rfind(b".", name.rfind(b"/") + 2)
    return name if dot < 0 else name[:dot]


def is_hidden(name: bytes) -> bool:
    """Whether a file is hidden or desktop metadata: .DS_Store, ._photo.jpg, __MACOSX/."""
    return name[name.rfind(b"/") + 1 :].startswith(b".") or b"__MACOSX/" in name
