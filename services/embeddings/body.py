"""Reads request bodies within limits: of each body, and of all bodies in memory."""

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
    """Counts the bytes of request bodies in memory; at most `max_held`."""

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
    """The bytes of one request."""

    bodies: Bodies
    size: int = 0

    def add(self, count: int) -> None:
        if self.bodies.held + count > self.bodies.max_held:
            raise busy(f"{self.bodies.held} bytes of requests are in memory")
        self.bodies.held += count
        self.size += count


async def read(request: Request, limit: int, held: Held) -> AsyncGenerator[bytes, None]:
    """Yields the body in chunks. Raises ServiceError 413 once the body, or its Content-Length, exceeds `limit` bytes."""
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
        if "expect" not in request.headers:  # a client that waits for "100 Continue" has sent nothing to drain
            await _drain(chunks)
        message = f"The body exceeds the limit of {limit} bytes for this route and content type."
        raise ServiceError(413, "too_many_bytes", message, {"limit": limit})


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
