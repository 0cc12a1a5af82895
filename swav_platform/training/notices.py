"""What a rank tells about itself, and requests to stop that all ranks follow after the same step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ASK_SECONDS = 2.0


class Interrupted(Exception):
    """The run stopped as requested, after a checkpoint of its last step. The text is the reason."""


@dataclass(frozen=True)
class Activity:
    """What a rank does. since: time.monotonic() of its machine."""

    step: int
    doing: str  # starting, rows, step, checkpoint
    since: float


class Notices:
    """Requests to stop, from other threads and from `ask`; and what this rank does, for other threads.

    A request reaches one rank at some time, but all ranks must stop after the same step. Requests therefore travel as numbers in the
    sum that each step makes anyway. `ask` may be a collective: rank 0 decides when all ranks call it, every ASK_SECONDS.
    """

    def __init__(self, ask: Callable[[], str | None] | None = None) -> None:
        self._ask, self._asked = ask, time.monotonic()
        self._request: str | None = None
        self.activity = Activity(0, "starting", time.monotonic())

    def request(self, reason: str) -> None:
        """Asks all ranks to write a checkpoint and stop. Callable from any thread, also from a signal handler."""
        self._request = self._request or reason

    def now(self, doing: str, step: int) -> None:
        self.activity = Activity(step, doing, time.monotonic())

    def numbers(self, rank: int) -> list[float]:
        """This rank's part of the step's sum."""
        due = rank == 0 and self._ask is not None and time.monotonic() - self._asked >= ASK_SECONDS
        return [float(self._request is not None), float(due)]

    def agreed(self, sums: Sequence[float]) -> str | None:
        """Why to stop after this step: the same decision on all ranks. sums: of `numbers` over ranks."""
        requested, due = sums
        told = None
        if due and self._ask is not None:
            told, self._asked = self._ask(), time.monotonic()
        return (self._request or "requested of another worker") if requested else told
