"""Atomic file replacement: readers see the old content or the new one, never a part."""

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
    """Yields a temporary path in the folder of `path` and renames it to `path` when the block succeeds.

    Of several concurrent writers, the last rename wins. The temporary name begins with "_", so readers of Parquet folders skip it.
    Raises UserError if the disk is full or the folder is not writable; the old content of `path` is then unchanged.
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
            f"{path} could not be written ({error.strerror or error}): {cure(error)} or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink()


_CURES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "grant this user write permission",
    errno.EPERM: "grant this user write permission",
    errno.EROFS: "mount the file system writable",
    errno.EEXIST: "remove the existing file",
    errno.ENOTDIR: "remove the file that blocks the folder",
    errno.EISDIR: "remove the folder with the name of the file",
}


def cure(error: OSError) -> str:
    """The advice for a failed write, without a final stop."""
    return _CURES.get(error.errno or 0, "check the file system")


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a small UTF-8 file atomically."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
