"""A child process that exchanges messages with its parent over two pipes.

The child is a new interpreter, not a fork: forking a process that has threads can leave locks held for ever. A message is two
lengths (uint64), a JSON object and bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from fcntl import F_SETFL, fcntl
from typing import Any, TypeVar

import numpy as np

START_SECONDS = 120.0
"""Limit for a child's imports, which may come from a cold disk on a busy machine."""

START_PAUSES = (0.5, 2.0, 5.0)
"""Seconds between attempts to start a child: a lack of processes or memory may be temporary."""

START_PATIENCE = 30.0
"""Seconds after which no further attempt is made."""

_UP = b"up"
_LENGTHS = struct.Struct("<QQ")
_MAX_HEAD = 2**16
_START = (
    "import os, sys; os.environ['OPENBLAS_NUM_THREADS'] = '1'; sys.path[:] = {path!r}; "
    "from importlib import import_module; import_module({module!r}).main(*{arguments!r})"
)

T = TypeVar("T")


class Died(Exception):
    """The child ended, or was killed, before it answered.

    code: its exit code, or the negative number of the signal that ended it. late: it was killed for the time that it took.
    peak: the most memory that it held, in bytes.
    """

    def __init__(self, code: int, *, late: bool = False, peak: int = 0) -> None:
        super().__init__(f"signal {-code}" if code < 0 else f"exit code {code}")
        self.code, self.peak = code, peak
        self.late = late or code == -signal.SIGPROF


class ChildProcess:
    """A child that runs `main(*arguments)` of a module. It belongs to the process that started it, and to one thread.

    isolated: the child gets no environment, and its error output is dropped. Raises OSError if the child does not start.
    """

    def __init__(self, module: str, arguments: Sequence[object] = (), *, isolated: bool) -> None:
        self.owner, self.peak = os.getpid(), 0
        code = _START.format(path=[os.path.abspath(place) for place in sys.path], module=module, arguments=tuple(arguments))
        self._process = subprocess.Popen(
            [sys.executable, *(["-I"] if isolated else []), "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if isolated else None,
            env={} if isolated else None,
            cwd="/",
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._to, self._from):
            fcntl(pipe, F_SETFL, os.O_NONBLOCK)
            _widen(pipe)
        try:
            self._read(len(_UP), time.monotonic() + START_SECONDS)
        except (OSError, EOFError):
            self.kill()
            raise ChildProcessError(f"{sys.executable} did not start: {Died(self.end())}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, head: Mapping[str, Any], body: Any, seconds: float) -> None:
        """Raises Died if the child ends first, or does not take the message within so many seconds."""
        text = json.dumps(head).encode()
        deadline = time.monotonic() + seconds
        with self._alive():
            self._write(_LENGTHS.pack(len(text), len(body)) + text, deadline)
            self._write(body, deadline)

    def receive(self, seconds: float, most: int | None = None) -> tuple[dict[str, Any], np.ndarray]:
        """The next message: its object, and its bytes uint8 [n].

        Raises Died if the child ends first, is silent for so many seconds, or sends more than `most` bytes or no valid message.
        """
        deadline = time.monotonic() + seconds
        with self._alive():
            head, body = _LENGTHS.unpack(self._read(_LENGTHS.size, deadline).tobytes())
            if head > _MAX_HEAD or (most is not None and body > most):
                raise ValueError("a message of impossible length")
            return dict(json.loads(self._read(head, deadline).tobytes())), self._read(body, deadline)

    @contextlib.contextmanager
    def _alive(self) -> Any:
        """Turns every way in which the child can fail into Died, and ends the child."""
        try:
            yield
        except TimeoutError:
            self.kill()
            raise Died(self.end(), late=True, peak=self.peak) from None
        except (OSError, ValueError, EOFError):
            raise Died(self.end(), peak=self.peak) from None

    def _write(self, data: Any, deadline: float) -> None:
        view = memoryview(data)
        while view:
            _wait(self._to, select.POLLOUT, deadline)
            view = view[os.write(self._to, view) :]

    def _read(self, size: int, deadline: float) -> np.ndarray:
        data = np.empty(size, np.uint8)
        view, at = data.data, 0
        while at < size:
            _wait(self._from, select.POLLIN, deadline)
            got = os.readv(self._from, [view[at:]])
            if not got:
                raise EOFError
            at += got
        return data

    def kill(self) -> None:
        """Kills the child. Safe from any thread; a thread that waits for the child gets Died."""
        if self.owner == os.getpid() and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Waits for the child for a moment, then kills it; its exit code, or the negative number of the signal."""
        if self.owner != os.getpid():  # a copy made by fork: the child belongs to the other process
            return 0
        until = time.monotonic() + 0.2
        while self._process.returncode is None and not self._reap(os.WNOHANG):
            if time.monotonic() > until:
                self.kill()
                self._reap(0)
            time.sleep(0.002)
        self._close()
        return self._process.returncode or 0

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _reap(self, options: int) -> bool:
        """Popen.wait, but with the peak of memory."""
        try:
            pid, status, usage = os.wait4(self.pid, options)
        except ChildProcessError:  # somebody else has taken its status
            self._process.returncode = 0
            return True
        if pid:
            self._process.returncode, self.peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        return bool(pid)

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None and process.returncode is None and self.owner == os.getpid():
            self.kill()
            process.wait()
            self._close()


def start_with_retries(start: Callable[[], T]) -> T:
    """start(), after pauses once more where it raises OSError; the last error is raised."""
    began = time.monotonic()
    for pause in START_PAUSES:
        try:
            return start()
        except OSError:
            if time.monotonic() - began > START_PATIENCE:
                raise
        time.sleep(pause)
    return start()


def _wait(pipe: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _widen(pipe: int) -> None:
    """Sets a pipe's buffer to 1 MiB, so that an image passes in few system calls."""
    with contextlib.suppress(OSError):
        fcntl(pipe, 1031, 2**20)  # F_SETPIPE_SZ


class ParentPipe:
    """The child's end of the pipes. A parent that has ended looks like an end of the input."""

    def __init__(self, incoming: int = 0, outgoing: int = 1) -> None:
        self._in, self._out = incoming, outgoing
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the pipe

    def ready(self) -> None:
        """Tells the parent that the child has started."""
        self._write(_UP)

    def receive(self) -> tuple[dict[str, Any], bytearray] | None:
        """The next message, None at the end of the input."""
        lengths = self._read(_LENGTHS.size)
        if not lengths:
            return None
        head, body = _LENGTHS.unpack(lengths)
        return json.loads(self._read(head)), self._read(body)

    def send(self, head: Mapping[str, Any], body: Any = b"") -> None:
        text = json.dumps(head).encode()
        self._write(_LENGTHS.pack(len(text), len(body)) + text)
        self._write(body)

    def _read(self, size: int) -> bytearray:
        """So many bytes, or none at the end of the input."""
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            got = os.readv(self._in, [view[at:]])
            if not got:
                return bytearray()
            at += got
        return data

    def _write(self, data: Any) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._out, view) :]
        except BrokenPipeError:  # the parent has ended
            raise SystemExit from None
