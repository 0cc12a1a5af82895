"""What a process gives up before it touches bytes from outside, so that a codec's error is worth little to anybody.

It can't open a file, a socket or another process; it has only its memory, two pipes and a bounded time. Linux gives all
of that; elsewhere the limits that the system knows.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import platform
import resource
import struct
import sys
from pathlib import Path

# Numbers of system calls (asm/unistd.h) that give a way out: open and its kin, sockets, programs, other processes' memory, limits.
_REFUSED = {
    "x86_64": (0xC000003E, 317, (2, 41, 42, 56, 57, 58, 59, 62, 85, 101, 160, 257, 302, 310, 311, 322, 425, 434, 435, 437, 438)),
    "aarch64": (0xC00000B7, 277, (56, 117, 129, 164, 198, 203, 220, 221, 261, 270, 271, 281, 425, 434, 435, 437, 438)),
}
_X32 = 0x40000000


def give_up(memory: int) -> None:
    """Takes away from this process, for good: files, sockets, children, and all memory but `memory` bytes more than it has."""
    _worth_killing_first()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
        *(((resource.RLIMIT_AS, now + memory),) if now else ()),
    ):
        resource.setrlimit(what, (limit, limit))
    _refuse_calls()


def _worth_killing_first() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _refuse_calls() -> None:
    """A seccomp filter: the calls listed fail with EPERM. Where the kernel has none, the limits alone stand."""
    if sys.platform != "linux" or platform.machine() not in _REFUSED:
        return
    architecture, seccomp, calls = _REFUSED[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # of a word; jump if; return
    refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, refuse), (load, 0, 0, 0), (at_least, 0, 1, _X32)]
    program.append((answer, 0, 0, refuse))
    for number in calls:
        program += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    program.append((answer, 0, 0, allow))
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    held = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(held))
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, which a filter asks for
    # Flag 4: without the kernel's brake on speculation, which makes decoding half as slow again and has nothing to guard here.
    libc.syscall(seccomp, 1, 4, ctypes.c_char_p(header))
