"""How fast a run goes, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from swav_platform.methods.comm import Comm
from swav_platform.training.counters import Counters


class Meter:
    """Images per second, shares of time spent waiting for rows and in collectives, and what data cost, since the last fresh start."""

    images_per_second = wait_share = 0.0
    collective_share: float | None = 0.0  # None where it can't be told
    waited_last = 0.0  # seconds that the last step's rows were waited for
    data = Counters()

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self._afresh()

    def _afresh(self) -> None:
        self.began, self.waited, self.images = time.perf_counter(), 0.0, 0
        self.communicated = self._communicated()
        self._data = Counters()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.waited_last = time.perf_counter() - before
        self.waited += self.waited_last

    def step(self, images: int, counters: Counters, fresh: bool) -> None:
        """Counts a step's images and what its data cost; with `fresh`, counting starts anew after it."""
        self.images += images
        self.data = self._data = self._data + counters
        spent = max(time.perf_counter() - self.began, 1e-9)
        self.images_per_second, self.wait_share = self.images / spent, self.waited / spent
        now = self._communicated()
        self.collective_share = None if now is None or self.communicated is None else (now - self.communicated) / spent
        if fresh:
            self._afresh()

    def _communicated(self) -> float | None:
        seconds: float | None = getattr(self.comm, "seconds", 0.0)
        return seconds
