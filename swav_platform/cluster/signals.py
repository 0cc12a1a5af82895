"""Keeps the program's signal handlers while Ray runs: Ray installs its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
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
