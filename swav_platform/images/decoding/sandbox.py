"""Drops the rights of a process before it decodes untrusted bytes, so that an exploited codec gains little.

Afterwards the process can't reach files, sockets or other processes, neither by opening them nor by name. It keeps its memory and
two pipes. Linux enforces all of this; other systems only the resource limits that they support.
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

# Numbers of the allowed system calls (asm/unistd.h): those that decoding needs. None reaches anything but this process and its pipes.
_CALLS = {
    "x86_64": {
        "open files": (0, 1, 3, 5, 8, 17, 19, 20),  # read, write, close, fstat, lseek, pread64, readv, writev
        "memory": (9, 10, 11, 12, 25, 28),  # mmap, mprotect, munmap, brk, mremap, madvise
        "its signals": (13, 14, 15, 131, 219),  # rt_sigaction, rt_sigprocmask, rt_sigreturn, sigaltstack, restart_syscall
        "time": (35, 36, 38, 96, 98, 228, 229, 230),  # nanosleep, get- and setitimer, gettimeofday, getrusage, clock_*
        "locks": (24, 202, 273, 324, 334),  # sched_yield, futex, set_robust_list, membarrier, rseq
        "what it is and has": (39, 99, 186, 204, 318),  # getpid, sysinfo, gettid, sched_getaffinity, getrandom
        "its end": (60, 231),  # exit, exit_group
    },
    "aarch64": {
        "open files": (57, 62, 63, 64, 65, 66, 67, 80),
        "memory": (214, 215, 216, 222, 226, 233),
        "its signals": (128, 132, 134, 135, 139),
        "time": (101, 102, 103, 113, 114, 115, 165, 169),
        "locks": (98, 99, 124, 283, 293),
        "what it is and has": (123, 172, 178, 179, 278),
        "its end": (93, 94),
    },
}
_SEES = {"x86_64": (0xC000003E, 317), "aarch64": (0xC00000B7, 277)}  # the filter's number of the architecture; number of seccomp
_X32 = 0x40000000


def give_up(memory: int) -> None:
    """Permanently denies this process files, sockets, children, and more than `memory` bytes beyond what it has.

    Raises OSError if the system refuses a limit.
    """
    _be_first_victim_of_oom()
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


def _be_first_victim_of_oom() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _refuse_calls() -> None:
    """Installs a seccomp filter: calls that are not listed fail with EPERM. Raises OSError if the kernel rejects it."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return
    architecture, seccomp = _SEES[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # load a word; jump if; return
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
    # A filter requires PR_SET_NO_NEW_PRIVS (38). Flag 4 (SECCOMP_FILTER_FLAG_SPEC_ALLOW) keeps speculation mitigations off, which make
    # decoding half as slow again and protect nothing here. Kernels before 4.17 do not know the flag.
    taken = not libc.prctl(38, 1, 0, 0, 0) and any(not libc.syscall(seccomp, 1, flag, ctypes.c_char_p(header)) for flag in (4, 0))
    if not taken:
        raise OSError(ctypes.get_errno(), "the kernel rejected the seccomp filter")
