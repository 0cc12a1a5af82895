"""The program's own signals while Ray is at work, which takes them for itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def own_signals() -> Iterator[None]:
    """SIGINT ends the block by KeyboardInterrupt, SIGTERM by the SystemExit that its handler raises; both handlers are there again
    after it.

    Ray puts a handler of its own for SIGTERM in place while it starts, which exits; Ray Train takes SIGINT, and `ray.get` loses the
    code of a SystemExit that comes from a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    on_interrupt, on_end = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    raised: list[SystemExit] = []

    def kept(number: int, frame: Any) -> None:
        try:
            if callable(on_end):
                on_end(number, frame)
        except SystemExit as error:
            raised.append(error)
            raise

    if callable(on_end):
        signal.signal(signal.SIGTERM, kept)
    try:
        yield
    except SystemExit:
        if not raised and callable(on_end) and signal.getsignal(signal.SIGTERM) not in (kept, signal.SIG_DFL):
            on_end(signal.SIGTERM, None)  # another's handler had it
        raise (raised[0] if raised else KeyboardInterrupt()) from None
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        signal.signal(signal.SIGTERM, on_end)
