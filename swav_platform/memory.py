"""How a process deals with memory that it frees."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed(largest: int, total: int) -> None:
    """Freed pieces of up to `largest` bytes, `total` in all, stay with malloc for the next who asks.

    Without it large pieces go back to the kernel at once, and each of their pages has to be made anew, zeroed, when it is
    next touched. Both below 2 GiB. Does nothing where malloc is not glibc's.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, largest)
        mallopt(_TRIM_THRESHOLD, total)
