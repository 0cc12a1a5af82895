"""Signals while Ray has the main thread."""

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
    """Those of SIGINT and SIGTERM: the second raises SystemExit(143)."""

    def ended(number: int, frame: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, ended)
    yield signal.getsignal(signal.SIGINT), ended
    signal.signal(signal.SIGTERM, before)


def restored(handlers: tuple[Any, Any]) -> bool:
    return (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_what_the_handler_of_sigterm_raises_comes_through(handlers: tuple[Any, Any]) -> None:
    with pytest.raises(SystemExit) as ended, own_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    assert ended.value.__cause__ is None
    assert restored(handlers)


def lost() -> None:
    """`ray.get` loses the code."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit:
        raise SystemExit from None


def taken() -> None:
    """Ray's handler has it while Ray starts."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("work", [lost, taken])
def test_also_where_ray_came_between(handlers: tuple[Any, Any], work: Callable[[], None]) -> None:
    with pytest.raises(SystemExit) as ended, own_signals():
        work()
    assert ended.value.code == 143
    assert restored(handlers)


def test_an_end_without_sigterm_was_an_interrupt(handlers: tuple[Any, Any]) -> None:
    def fit() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ray Train takes it for itself, too
        raise SystemExit(0)

    with pytest.raises(KeyboardInterrupt), own_signals():
        fit()
    assert restored(handlers)
