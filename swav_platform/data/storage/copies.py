"""Copies of folders of object stores on the local disk, for readers that need files: an index, a model package, embeddings.

A copy is named by the content of the folder (names, sizes and versions of its objects), so it never changes. Processes of a node share
it. Copies that nothing has opened for 30 days are deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from obstore.exceptions import NotFoundError

from swav_platform.atomic import cure
from swav_platform.data.storage.cache import cache_folder
from swav_platform.data.storage.objects import Changed, ObjectInfo, listing, read_range
from swav_platform.data.storage.retries import persistently
from swav_platform.errors import UserError

_KEPT = 30 * 24 * 3600.0  # seconds
_PIECE = 32 * 2**20


def local_copy_of_folder(url: str, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """The path of a folder with the objects below `url`, which are downloaded if necessary. Empty if there are none.

    wanted: selects objects by their name below `url`. Raises MachineFault if the storage does not answer, and UserError if the copy can't
    be written.
    """
    prefix = url.rstrip("/") + "/"
    return persistently(
        url, lambda: _copied(prefix, {at: info for at, info in listing(prefix) if wanted(at.removeprefix(prefix))})
    )


def _copied(prefix: str, found: dict[str, ObjectInfo]) -> Path:
    names = {url.removeprefix(prefix): (info.size, info.version) for url, info in found.items()}
    path = cache_folder() / "folders" / hashlib.sha256(json.dumps([prefix, names]).encode()).hexdigest()[:32]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_dir():
                _delete_old(path.parent)
                aside = path.with_suffix(".part")
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                for url, info in found.items():
                    _download(url, info, aside / url.removeprefix(prefix))
                os.replace(aside, path)
            os.utime(path)
    except OSError as error:
        if error.errno is None:  # of the storage, not of this disk
            raise
        raise UserError(
            f"{prefix} can't be copied to {path.parent} ({error.strerror}): {cure(error)}, or set SWAV_CACHE to another folder."
        ) from error
    return path


def _download(url: str, info: ObjectInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, info.size, _PIECE):
            try:
                piece, _ = read_range(url, start, min(start + _PIECE, info.size), version=info.version)
            except NotFoundError:
                raise Changed(f"{url} has been deleted") from None
            file.write(piece)


def _delete_old(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and path.stat().st_mtime < time.time() - _KEPT:
                shutil.rmtree(path, ignore_errors=True)
