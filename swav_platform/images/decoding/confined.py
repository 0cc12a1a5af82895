"""Decoding in a child: killable, of bounded memory, with an empty environment. This is the parent's side.

Each thread of a data worker has a child of its own, started when first needed and kept warm. What it answers is checked
like anything else that comes from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from fcntl import F_SETFL, fcntl
from typing import Any

import numpy as np

from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.errors import UserError
from swav_platform.images.decoding.refused import Refused

CPU_SECONDS = 1.9
"""Of the processor, for an image; the child is killed at that. What should take 1.5 s is refused by its header already."""

CLOCK_SECONDS = 20.0
"""By the clock: only a child that is stopped or starved comes to that."""

START_SECONDS = 120.0
"""Its imports, from a cold disk on a busy machine."""

START_PAUSES = (0.5, 2.0, 5.0)
"""Seconds between tries to start one: processes and memory come and go."""

START_PATIENCE = 30.0
"""Seconds after which no further try is made, and for which none is made after the last."""

MEMORY = 768 * 2**20
"""Bytes of address space that decoding may take, beyond the programs themselves."""

IMAGES = 5000
"""After so many a child makes place for a fresh one, so that what codecs leak or an image left behind ends with it."""

_START = "import os, sys; os.environ['OPENBLAS_NUM_THREADS'] = '1'; sys.path[:] = {path!r}; from swav_platform.images.decoding.child import serve; serve({memory})"
_MAX_HEAD = 2**16


class NoDecoderError(UserError):
    """No child can be started. It says nothing of an image, so no image may be refused for it."""


class Died(Exception):
    """The child ended, or was ended, over an image. `late`: for the time that it took."""

    def __init__(self, signal_number: int, *, late: bool = False) -> None:
        super().__init__(f"signal {signal_number}" if signal_number > 0 else f"exit code {-signal_number}")
        self.late = late or signal_number == signal.SIGPROF


class Child:
    """A decoding process. Belongs to the process that started it, and to one thread. Raises OSError if it does not start."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.owner, self.images = os.getpid(), 0
        code = _START.format(path=[os.path.abspath(place) for place in sys.path], memory=memory)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
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
            self._read(2, time.monotonic() + START_SECONDS)
        except (OSError, EOFError):
            self._process.kill()
            raise ChildProcessError(f"{sys.executable} did not come up: {Died(self.end())}") from None

    def ask(self, request: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        """Its answer, and the bytes that come with it, uint8 [n]. Raises Died."""
        self.images += 1
        deadline = time.monotonic() + CLOCK_SECONDS
        head = json.dumps(request).encode()
        try:
            self._write(len(head).to_bytes(4, "little") + len(data).to_bytes(4, "little") + head, deadline)
            self._write(data, deadline)
            lengths = self._read(8, deadline).view("<u4")
            if lengths[0] > _MAX_HEAD or lengths[1] > request["most"]:
                raise Died(self.end())
            answer = dict(json.loads(self._read(int(lengths[0]), deadline).tobytes()))
            return answer, self._read(int(lengths[1]), deadline)
        except TimeoutError:
            self._process.kill()
            raise Died(self.end(), late=True) from None
        except (OSError, ValueError, EOFError):
            raise Died(self.end()) from None

    def _write(self, data: bytes, deadline: float) -> None:
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

    def end(self) -> int:
        """Kills it if it still lives; the signal that ended it."""
        if self.owner != os.getpid():  # a copy made by fork: the child and its pipes are the other process's
            return 0
        try:
            self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return -self._process.wait()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None and self._process.returncode is None:
            self._process.kill()
            self.end()


def _wait(pipe: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _widen(pipe: int) -> None:
    """A megabyte, so that an image passes in few turns."""
    with contextlib.suppress(OSError):
        fcntl(pipe, 1031, 2**20)  # F_SETPIPE_SZ


_here = threading.local()


def _child() -> Child:
    child: Child | None = getattr(_here, "child", None)
    if child is None or child.owner != os.getpid() or child.images >= IMAGES:
        _here.child = child = _start()
    return child


def _start() -> Child:
    refused: NoDecoderError | None = getattr(_here, "refused", None)
    began = time.monotonic()
    if refused is not None and began < _here.refused_until:
        raise refused
    for pause in (*START_PAUSES, None):
        try:
            return Child()
        except OSError as error:
            now = time.monotonic()
            if pause is None or now - began > START_PATIENCE:
                _here.refused_until = now + START_PATIENCE
                _here.refused = NoDecoderError(
                    f"No process that decodes images can be started on this machine ({error}): "
                    "see with `ulimit -a`, `free` and `swav doctor` what it is out of."
                )
                raise _here.refused from None
            time.sleep(pause)
    raise AssertionError


def _ask(request: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """Raises Refused for an image that the child did not survive, and NoDecoderError. One that crashes it has a second try, in a
    fresh one."""
    for attempt in (1, 2):
        try:
            return _child().ask(request, data)
        except Died as died:
            _here.child = None
            if died.late:
                raise Refused(Outcome.DECODE_TIMEOUT, f"not decoded in {request['seconds']:g} s") from None
            if attempt == 2:
                raise Refused(Outcome.DECODE_CRASH, f"the decoder died ({died})") from None
    raise AssertionError


def _request(name: str, policy: ImagePolicy, most: int, seconds: float, side: int = 0) -> dict[str, Any]:
    return {"format": name, "policy": policy.model_dump(), "side": side, "seconds": seconds, "most": most}


def decode(data: bytes, name: str, policy: ImagePolicy) -> np.ndarray:
    """Upright RGB pixels uint8 [H, W, 3] by way of the child. Raises Refused, NoDecoderError, and nothing else."""
    answer, pixels = _ask(_request(name, policy, 3 * policy.max_pixels, CPU_SECONDS), data)
    try:
        outcome = Outcome(answer["outcome"])
        if outcome != Outcome.OK:
            raise Refused(outcome, str(answer["detail"])[:300])
        height, width = answer["shape"]
        return pixels.reshape(int(height), int(width), 3)
    except (KeyError, ValueError, TypeError):
        raise Refused(Outcome.DECODE_CRASH, "the decoder's answer makes no sense") from None


def thumbnail(data: bytes, name: str, policy: ImagePolicy, side: int) -> bytes | None:
    """A JPEG of at most `side` pixels, None if it can't be had. Raises as decode, Refused only if the child did not survive."""
    answer, small = _ask(_request(name, policy, 2**20, CPU_SECONDS / 4, side), data)
    return small.tobytes() if answer.get("outcome") == Outcome.OK else None
