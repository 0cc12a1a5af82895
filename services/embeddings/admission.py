"""Decides early who is served: the number of pending images and their expected wait are bounded, for images and for searches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.embeddings.errors import ServiceError, busy


@dataclass
class Admission:
    """Pending work of all models of the process. Belongs to one event loop."""

    max_pending: int  # images, and separately searches
    max_age: float  # seconds that new work may have to wait
    show: Callable[[float], None] = lambda images: None  # told the number of pending images
    rate: float = math.inf  # images per second that the models encode, from the latest batches
    images: int = 0
    searches: int = 0
    closing: bool = False

    @property
    def wait(self) -> float:
        """Seconds until what is pending is done."""
        return self.images / self.rate

    def check(self, count: int = 1) -> None:
        """Raises ServiceError 503 if `count` more images are too many. Called before a body is read, and again when it is known."""
        if self.closing:
            raise busy("it is shutting down")
        if self.images + count > self.max_pending:
            raise self._full(f"{self.images} images are pending")
        if self.images and self.wait > self.max_age:
            raise self._full(f"{self.images} images are pending, which takes {self.wait:.0f} s")

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        self.check(count)
        self._add(count)
        try:
            yield
        finally:
            self._add(-count)

    def _add(self, count: int) -> None:
        self.images += count
        self.show(self.images)

    @contextmanager
    def searching(self) -> Iterator[None]:
        if self.searches >= self.max_pending:
            raise busy(f"{self.searches} searches are pending")
        self.searches += 1
        try:
            yield
        finally:
            self.searches -= 1

    def encoded(self, count: int, seconds: float) -> None:
        """Takes a finished batch into account: the latest twenty batches or so set the rate."""
        latest = count / max(seconds, 1e-6)
        self.rate = latest if math.isinf(self.rate) else 0.95 * self.rate + 0.05 * latest

    def _full(self, what: str) -> ServiceError:
        seconds = max(1, math.ceil(min(self.wait - self.max_age / 2, 60.0)))  # until half of the queue is free
        return busy(what, seconds)
