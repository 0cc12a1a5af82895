"""Speed of a run, and the time that it waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from swav_platform.methods.comm import Comm
from swav_platform.training.counters import Counters


class Meter:
    """Images per second, shares of time spent on waiting for rows and on collectives, and costs of data, since the last reset."""

    images_per_second = wait_share = 0.0
    collective_share: float | None = 0.0  # None where it is unknown: on GPUs
    waited_last = 0.0  # seconds of waiting for the last step's rows
    data = Counters()

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self._reset()

    def _reset(self) -> None:
        self.began, self.waited, self.images = time.perf_counter(), 0.0, 0
        self.communicated = self._communicated()
        self._data = Counters()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.waited_last = time.perf_counter() - before
        self.waited += self.waited_last

    def step(self, images: int, counters: Counters, reset: bool) -> None:
        """Adds a step's images and data costs. reset: start counting from zero after this step."""
        self.images += images
        self.data = self._data = self._data + counters
        spent = max(time.perf_counter() - self.began, 1e-9)
        self.images_per_second, self.wait_share = self.images / spent, self.waited / spent
        now = self._communicated()
        self.collective_share = None if now is None or self.communicated is None else (now - self.communicated) / spent
        if reset:
            self._reset()

    def _communicated(self) -> float | None:
        seconds: float | None = getattr(self.comm, "seconds", 0.0)
        return seconds
