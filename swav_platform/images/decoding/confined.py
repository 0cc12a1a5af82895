"""Decoding in a child process: killable, with limited memory and an empty environment. This is the parent's side.

Each thread has its own child, started on first use and kept warm. The child's answers are checked like any other input from
outside.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from swav_platform.child_process import START_PATIENCE, ChildProcess, Died, start_with_retries
from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.errors import UserError
from swav_platform.images.decoding.refused import Refused

OVERTIME = 1.9 / 1.5
"""The child is killed after so many times the CPU time that the header check allows."""

CLOCK_SECONDS = 20.0
"""Wall-clock time for an image, or ten times its CPU time if that is longer. Only a child that is stopped or starved reaches it."""

ENCODED = 128 * 2**20
"""Bytes that decoding may add to what the header check allows: two copies of the encoded image."""

IMAGES = 5000
"""Images after which a child is replaced, so that memory which codecs leak, or data which an image left behind, goes with it."""

_CHILD = "swav_platform.images.decoding.child"


class NoDecoderError(UserError):
    """No child can be started. This says nothing about an image, so no image may be refused for it."""


class Child(ChildProcess):
    """A decoding process. memory: bytes of address space that decoding may add to it. Raises OSError if it does not start."""

    def __init__(self, memory: int) -> None:
        self.images, self.memory = 0, memory
        super().__init__(_CHILD, (memory,), isolated=True)

    def ask(self, request: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        """Its answer, and the bytes that come with it, uint8 [n]. Raises Died."""
        self.images += 1
        clock = max(CLOCK_SECONDS, 10 * request["seconds"])
        self.send(request, data, clock)
        return self.receive(clock, request["most"])


_here = threading.local()


def cpu_seconds(policy: ImagePolicy) -> float:
    """CPU time for an image, after which the child is killed."""
    return round(policy.decode_seconds * OVERTIME, 3)


def memory(policy: ImagePolicy) -> int:
    """Bytes of address space that decoding may add to what the program itself has."""
    return policy.decode_bytes + max(ENCODED, 2 * policy.max_bytes)


def _child(memory: int) -> Child:
    child: Child | None = getattr(_here, "child", None)
    if child is None or child.owner != os.getpid() or child.images >= IMAGES or child.memory != memory:
        _here.child = child = _start(memory)
    return child


def _start(memory: int) -> Child:
    """A new child. After a failure, calls within START_PATIENCE raise the same error at once."""
    failed: NoDecoderError | None = getattr(_here, "failed", None)
    if failed is not None and time.monotonic() < _here.failed_until:
        raise failed
    try:
        return start_with_retries(lambda: Child(memory))
    except OSError as error:
        _here.failed_until = time.monotonic() + START_PATIENCE
        _here.failed = NoDecoderError(
            f"No process that decodes images can be started on this machine ({error}). "
            "Check its limits and free memory with `ulimit -a`, `free` and `swav doctor`."
        )
        raise _here.failed from None


def _ask(request: Mapping[str, Any], data: bytes, memory: int) -> tuple[dict[str, Any], np.ndarray]:
    """Raises Refused for an image that the child did not survive, and NoDecoderError.

    An image that crashes a child is tried a second time, in a new child.
    """
    for attempt in (1, 2):
        try:
            return _child(memory).ask(request, data)
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
    """Upright RGB pixels uint8 [H, W, 3], decoded by the child. Raises only Refused and NoDecoderError."""
    answer, pixels = _ask(_request(name, policy, 3 * policy.max_pixels, cpu_seconds(policy)), data, memory(policy))
    try:
        outcome = Outcome(answer["outcome"])
        if outcome != Outcome.OK:
            raise Refused(outcome, str(answer["detail"])[:300])
        height, width = answer["shape"]
        return pixels.reshape(int(height), int(width), 3)
    except (KeyError, ValueError, TypeError):
        raise Refused(Outcome.DECODE_CRASH, "the decoder's answer is invalid") from None


def thumbnail(data: bytes, name: str, policy: ImagePolicy, side: int) -> bytes | None:
    """A JPEG of at most `side` pixels, None if the image can't be decoded. Raises as decode, Refused only if the child died."""
    answer, small = _ask(_request(name, policy, 2**20, cpu_seconds(policy) / 4, side), data, memory(policy))
    return small.tobytes() if answer.get("outcome") == Outcome.OK else None
