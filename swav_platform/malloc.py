"""Settings of glibc's malloc for this process. They have no effect with another malloc."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_LARGEST_EVERYWHERE = 2**25  # older versions of glibc refuse more


def keep_freed(largest: int, total: int) -> None:
    """Makes malloc keep freed blocks of up to `largest` bytes for reuse, until more than `total` bytes are free at the heap's end.

    Both limits are below 2 GiB and apply to the whole process. By default, large blocks go back to the kernel at once, and the
    next use of each page costs a page fault and a zeroed page. Threads other than the main one have heaps of 64 MiB: blocks near
    that size go back in any case.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(_MMAP_THRESHOLD, largest):
            mallopt(_MMAP_THRESHOLD, _LARGEST_EVERYWHERE)
        mallopt(_TRIM_THRESHOLD, total)


def give_back_freed() -> None:
    """Returns freed memory to the kernel, from the heaps of all threads."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
