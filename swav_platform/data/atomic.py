"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swav_platform.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well.

    Its name begins with "_", which readers of Parquet folders pass over. Raises UserError when the disk is full
    or the folder can't be written; what was at `path` is then still there.
    """
    aside = path.with_name(f"_{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}): free some space or name another folder."
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink()
