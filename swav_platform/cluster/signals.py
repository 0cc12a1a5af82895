"""Keeps the program's signal handlers while Ray runs: Ray installs its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def own_signals() -> Iterator[None]:
    """Inside the block SIGINT raises KeyboardInterrupt, and SIGTERM the SystemExit that its handler raises.

    Both handlers are restored afterwards. `ray.init` installs a SIGTERM handler that exits, Ray Train installs one for SIGINT,
    and `ray.get` loses the code of a SystemExit raised by a handler. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    on_interrupt, on_terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    raised: list[SystemExit] = []

    def recorded(number: int, frame: Any) -> None:
        try:
            if callable(on_terminate):
                on_terminate(number, frame)
        except SystemExit as error:
            raised.append(error)
            raise

    if callable(on_terminate):
        signal.signal(signal.SIGTERM, recorded)
    try:
        yield
    except SystemExit:
        if not raised and callable(on_terminate) and signal.getsignal(signal.SIGTERM) not in (recorded, signal.SIG_DFL):
            on_terminate(signal.SIGTERM, None)  # Ray's handler received the signal
        raise (raised[0] if raised else KeyboardInterrupt()) from None
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        signal.signal(signal.SIGTERM, on_terminate)


GRACE_SECONDS, GRACE_SECONDS_OF_A_JOB = 20.0, 2.0
"""Time for a checkpoint after SIGTERM. Kubernetes kills 30 s after it, the job server of Ray 3 s."""


@contextmanager
def checkpoint_on_sigterm(request: Callable[[str], None]) -> Iterator[None]:
    """Inside the block the first SIGTERM calls `request`, which asks for a checkpoint and the end of the block. After the block, or when
    the grace is over, or at the next SIGTERM, the program's own handler runs. Does nothing outside the main thread."""
    own = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(own):
        yield
        return
    grace = GRACE_SECONDS_OF_A_JOB if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else GRACE_SECONDS
    timers: list[threading.Timer] = []

    def first(number: int, frame: Any) -> None:
        if timers:
            own(number, frame)
            return
        timers.append(threading.Timer(grace, os.kill, (os.getpid(), signal.SIGTERM)))
        timers[0].daemon = True
        timers[0].start()
        threading.Thread(target=request, args=("SIGTERM",), daemon=True).start()  # a handler must not wait for Ray

    signal.signal(signal.SIGTERM, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, own)
        for timer in timers:
            timer.cancel()
    if timers:
        own(signal.SIGTERM, None)
