"""Locks of the operating system, for runs on disks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from swav_platform.errors import UserError

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def locked(path: Path, wait: float) -> Iterator[bool]:
    """Yields whether the lock was acquired within `wait` seconds. The operating system releases it when the process ends.

    Raises UserError if the folder is not writable or its file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"The run's folder {path.parent} is not writable ({error.strerror}). Choose another one with --out, or change its permissions."
        ) from None
    try:
        yield _try_lock(lock, path, time.monotonic() + wait)
    finally:
        os.close(lock)


def _try_lock(lock: int, path: Path, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (*_HELD, errno.EINTR):
                raise UserError(
                    f"The file system of {path.parent} has no locks ({error.strerror}), so nothing would keep two commands from writing "
                    f"to the run. Mount it with locks, or choose a local folder or an s3:// URL with --out."
                ) from None
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)
