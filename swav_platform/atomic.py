"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swav_platform.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well.

    Of several who write at the same time, one wins. The name begins with "_", which readers of Parquet folders pass over.
    Raises UserError when the disk is full or the folder can't be written; what was at `path` is then still there.
    """
    aside = path.with_name(f"_{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}): {cure(error)} or name another folder."
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink()


_CURES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EROFS: "make its file system writable",
    errno.EEXIST: "take away what is there already",
    errno.ENOTDIR: "take away the file that is where a folder should be",
    errno.EISDIR: "take away the folder that is where a file should be",
}


def cure(error: OSError) -> str:
    """What to do about a file that could not be written."""
    return _CURES.get(error.errno or 0, "look at its file system")


def write_text(path: Path, text: str) -> None:
    """A small file by `replacing`, in UTF-8."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
