"""How this process's malloc deals with memory. Nothing happens where malloc is not glibc's."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _PERTURB = -1, -3, -6  # of glibc's mallopt
_LARGEST_EVERYWHERE = 2**25  # more is refused by older glibc


def keep_freed(largest: int, total: int) -> None:
    """From now on freed pieces of up to `largest` bytes stay with malloc for the next who asks, until more than `total` lie free at
    the heap's end. Both below 2 GiB; holds for the whole process.

    Without it large pieces go back to the kernel at once, and each of their pages has to be made anew, zeroed, when it is next
    touched. In threads other than the main one malloc has heaps of 64 MiB: pieces near that size go back all the same.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(_MMAP_THRESHOLD, largest):
            mallopt(_MMAP_THRESHOLD, _LARGEST_EVERYWHERE)
        mallopt(_TRIM_THRESHOLD, total)


def fill(value: int) -> None:
    """What is freed is filled with a value from 1 to 255, what is allocated with its complement; 0: neither."""
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_PERTURB, value)
