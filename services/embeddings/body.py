"""Bodies read with a bound: of each, and of all that are held at one time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from services.embeddings.errors import ServiceError, busy

DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0


@dataclass
class Bodies:
    """Bytes of request bodies held at one time; `max_held` of them at most."""

    max_held: int
    held: int = 0

    @contextmanager
    def open(self) -> Iterator[Held]:
        body = Held(self)
        try:
            yield body
        finally:
            self.held -= body.size


@dataclass
class Held:
    """One request's part of what is held."""

    bodies: Bodies
    size: int = 0

    def add(self, count: int) -> None:
        if self.bodies.held + count > self.bodies.max_held:
            raise busy(f"{self.bodies.held} bytes of requests are held")
        self.bodies.held += count
        self.size += count


async def read(request: Request, limit: int, held: Held) -> AsyncGenerator[bytes, None]:
    """The body in chunks; ServiceError 413 as soon as it is, or says that it is, longer than `limit` bytes."""
    chunks = request.stream()
    size = 0
    too_long = _announced(request) > limit
    if not too_long:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                too_long = True
                break
            held.add(len(chunk))
            yield chunk
    if too_long:
        if "expect" not in request.headers:  # a client that waits for our word needs no draining
            await _drain(chunks)
        message = f"The body has more than the {limit} bytes that this route takes in this form."
        raise ServiceError(413, "too_many_bytes", message, {"limit": limit})


def _announced(request: Request) -> int:
    with suppress(ValueError):
        return int(request.headers.get("content-length", "0"))
    return 0


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Reads on for a while: a client that is still sending would see a broken connection instead of the answer."""
    size = 0
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for chunk in chunks:
                size += len(chunk)
                if size > DRAIN_BYTES:
                    return
