"""What a process gives up before it touches bytes from outside, so that a codec's error is worth little to anybody.

It can't reach a file, a socket or another process, neither by opening it nor by its name; it has only its memory, two pipes
and a bounded time. Linux gives all of that; elsewhere the limits that the system knows.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import platform
import resource
import struct
import sys
from pathlib import Path

# Numbers of system calls (asm/unistd.h): all that decoding needs, and that reaches nothing outside this process but its pipes.
_CALLS = {
    "x86_64": {
        "bytes of what is open": (0, 1, 3, 5, 8, 17, 19, 20),  # read, write, close, fstat, lseek, pread64, readv, writev
        "memory": (9, 10, 11, 12, 25, 28),  # mmap, mprotect, munmap, brk, mremap, madvise
        "its signals": (13, 14, 15, 131, 219),  # rt_sigaction, rt_sigprocmask, rt_sigreturn, sigaltstack, restart_syscall
        "time": (35, 36, 38, 96, 98, 228, 229, 230),  # nanosleep, get- and setitimer, gettimeofday, getrusage, clock_*
        "locks": (24, 202, 273, 324, 334),  # sched_yield, futex, set_robust_list, membarrier, rseq
        "what it is and has": (39, 99, 186, 204, 318),  # getpid, sysinfo, gettid, sched_getaffinity, getrandom
        "its end": (60, 231),  # exit, exit_group
    },
    "aarch64": {
        "bytes of what is open": (57, 62, 63, 64, 65, 66, 67, 80),
        "memory": (214, 215, 216, 222, 226, 233),
        "its signals": (128, 132, 134, 135, 139),
        "time": (101, 102, 103, 113, 114, 115, 165, 169),
        "locks": (98, 99, 124, 283, 293),
        "what it is and has": (123, 172, 178, 179, 278),
        "its end": (93, 94),
    },
}
_SEES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}  # the architecture as a filter is told it; number of seccomp
_X32 = 0x40000000


def give_up(memory: int) -> None:
    """Takes away from this process, for good: files, sockets, children, and all memory but `memory` bytes more than it has.

    Raises OSError where the system refuses to take them.
    """
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
    """A seccomp filter: all calls but those listed fail with EPERM. Raises OSError if the kernel does not take it."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return
    architecture, seccomp = _SEES[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # of a word; jump if; return
    refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, refuse), (load, 0, 0, 0), (at_least, 0, 1, _X32)]
    program.append((answer, 0, 0, refuse))
    for number in itertools.chain(*_CALLS[platform.machine()].values()):
        program += [(equal, 0, 1, number), (answer, 0, 0, allow)]
    program.append((answer, 0, 0, refuse))
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    held = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    # No new privileges, which a filter asks for. Then flag 4: without the kernel's brake on speculation, which makes decoding half
    # as slow again and has nothing to guard here; kernels before 4.17 do not know it.
    taken = not libc.prctl(38, 1, 0, 0, 0) and any(not libc.syscall(seccomp, 1, flag, ctypes.c_char_p(header)) for flag in (4, 0))
    if not taken:
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")
