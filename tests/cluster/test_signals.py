"""Signals while Ray runs in the main thread."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from swav_platform.cluster.signals import own_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[tuple[Any, Any]]:
    """The handlers of SIGINT and SIGTERM; the second raises SystemExit(143)."""

    def ended(number: int, frame: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, ended)
    yield signal.getsignal(signal.SIGINT), ended
    signal.signal(signal.SIGTERM, before)


def restored(handlers: tuple[Any, Any]) -> bool:
    return (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_the_exit_of_the_sigterm_handler_is_kept(handlers: tuple[Any, Any]) -> None:
    with pytest.raises(SystemExit) as ended, own_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    assert ended.value.__cause__ is None
    assert restored(handlers)


def lost() -> None:
    """As in `ray.get`, which loses the code."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit:
        raise SystemExit from None


def taken() -> None:
    """As while Ray starts: its handler receives the signal."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("work", [lost, taken])
def test_the_exit_code_survives_ray(handlers: tuple[Any, Any], work: Callable[[], None]) -> None:
    with pytest.raises(SystemExit) as ended, own_signals():
        work()
    assert ended.value.code == 143
    assert restored(handlers)


def test_an_exit_without_sigterm_is_an_interrupt(handlers: tuple[Any, Any]) -> None:
    def fit() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Ray Train does
        raise SystemExit(0)

    with pytest.raises(KeyboardInterrupt), own_signals():
        fit()
    assert restored(handlers)
