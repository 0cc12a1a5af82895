"""Reads request bodies within limits: of each body, of all bodies in memory, and of time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from fastapi import Request
from starlette.requests import ClientDisconnect

from services.embeddings.errors import ServiceError, busy

DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0
STALL = 10.0  # seconds without a byte
GRACE = 10.0  # seconds before the least rate applies
RATE = 16 * 1024  # bytes per second
IDLE = 1.0  # seconds without a byte after which a body may be refused when memory is short
SMALL = 2**20  # bytes; larger bodies leave a quarter of the memory to others
CLOSING = 2.0  # seconds that a body may still take once the service shuts down


@dataclass
class Bodies:
    """Counts the bytes of request bodies in memory; at most `max_held`.

    admit: called with the least number of images before a body is read, and before images are fetched; raises ServiceError if the
    service has no capacity.
    """

    max_held: int
    admit: Callable[[int], None] = lambda count: None
    held: int = 0
    closing: bool = False
    _reading: set[Held] = field(default_factory=set)

    @contextmanager
    def open(self) -> Iterator[Held]:
        self.admit(1)
        body = Held(self)
        try:
            yield body
        finally:
            self._reading.discard(body)
            self.held -= body.size

    def close(self) -> None:
        """Gives bodies that are being read CLOSING seconds."""
        self.closing = True
        for body in self._reading:
            body.hurry(CLOSING)

    def make_room(self, count: int, wanted: Held) -> bool:
        """Ends the largest idle bodies until `count` more bytes fit. Their clients may have stalled; others are waiting."""
        now = asyncio.get_running_loop().time()
        idle = [body for body in self._reading if body is not wanted and now - body.last > IDLE]
        for body in sorted(idle, key=lambda body: -body.size):
            if self._fits(count, wanted):
                break
            body.give_up()
        return self._fits(count, wanted)

    def _fits(self, count: int, wanted: Held) -> bool:
        reserve = 0 if wanted.size + count <= SMALL or self.held == wanted.size else self.max_held // 4
        return self.held + count <= self.max_held - reserve


@dataclass(eq=False)
class Held:
    """The bytes of one request."""

    bodies: Bodies
    size: int = 0
    last: float = 0.0  # when the latest bytes came, by the clock of the loop
    _clock: asyncio.Timeout | None = None  # while it waits for bytes

    def add(self, count: int) -> None:
        if not self.bodies._fits(count, self) and not self.bodies.make_room(count, self):
            raise busy(f"{self.bodies.held} bytes of requests are in memory")
        self.bodies.held += count
        self.size += count

    def forget(self, count: int) -> None:
        """Bytes that were dropped before the end of the request."""
        self.bodies.held -= count
        self.size -= count

    async def next(self, chunks: AsyncIterator[bytes], deadline: float) -> bytes | None:
        """The next bytes, None at the end. Raises TimeoutError at `deadline`, or earlier if others need the memory."""
        try:
            async with asyncio.timeout_at(deadline) as self._clock:
                self.bodies._reading.add(self)
                if self.bodies.closing:
                    self.hurry(CLOSING)
                return await anext(chunks, None)
        finally:
            self._clock = None
            self.bodies._reading.discard(self)

    def hurry(self, seconds: float) -> None:
        if self._clock is not None and not self._clock.expired():
            limit = asyncio.get_running_loop().time() + seconds
            when = self._clock.when()
            self._clock.reschedule(limit if when is None else min(when, limit))

    def give_up(self) -> None:
        """Ends the reading, and counts the bytes as free: they are when the reader gets its turn."""
        self.hurry(0.0)
        self.bodies._reading.discard(self)
        self.bodies.held -= self.size
        self.size = 0


async def read(request: Request, limit: int, held: Held) -> AsyncGenerator[bytes, None]:
    """Yields the body in chunks.

    Raises ServiceError 413 once the body, or its Content-Length, exceeds `limit` bytes, and 503 if memory is short. It raises 408
    if the body stalls for STALL seconds or comes at less than RATE after GRACE seconds.
    """
    chunks = request.stream()
    size = 0
    too_long = _announced(request) > limit
    if not too_long:
        clock = asyncio.get_running_loop().time
        started = clock()
        while not too_long:
            held.last = clock()
            try:
                chunk = await held.next(chunks, min(held.last + STALL, started + GRACE + size / RATE))
            except TimeoutError:
                raise _too_slow(size, held.bodies.closing) from None
            if chunk is None:
                break
            size += len(chunk)
            too_long = size > limit
            if not too_long:
                held.add(len(chunk))
                yield chunk
    if too_long:
        if "expect" not in request.headers:  # a client that waits for "100 Continue" has sent nothing to drain
            await _drain(chunks)
        message = f"The body exceeds the limit of {limit} bytes for this route and content type."
        raise ServiceError(413, "too_many_bytes", message, {"limit": limit})


def _too_slow(size: int, closing: bool) -> ServiceError:
    if closing:
        return busy("it is shutting down")
    message = (
        f"The body came too slowly: {size} bytes, then a pause, or less than {RATE} bytes a second. "
        "Send it again over a faster connection."
    )
    return ServiceError(408, "too_slow", message, {"received": size}, {"Connection": "close"})


def _announced(request: Request) -> int:
    with suppress(ValueError):
        return int(request.headers.get("content-length", "0"))
    return 0


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Discards more of the body: a client that is still sending would see a broken connection instead of the response."""
    size = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in chunks:
                size += len(chunk)
                if size > DRAIN_BYTES:
                    return
