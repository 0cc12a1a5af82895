"""Bodies that the page sends, read within the limits of all bodies. FastAPI would read them before it asks for the key."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from services.embeddings.body import read
from services.embeddings.errors import ServiceError
from services.embeddings.state import current

MOST = 1_000_000  # samples that a body may name
KEYS = 1000  # colons, also those in a name
BYTES = 20 * MOST

T = TypeVar("T", bound=BaseModel)


async def sent(request: Request, kind: type[T]) -> T:
    """The body as a model. Raises ServiceError or RequestValidationError for anything else."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
        message = f"Content type {media[:80]!r} is not supported. Send application/json, uncompressed."
        raise ServiceError(415, "unsupported_media_type", message, {"content_type": media[:80]})
    with current(request).bodies.open() as held:
        body = b"".join([chunk async for chunk in read(request, BYTES, held)])
        return await asyncio.to_thread(_parsed, body, kind)


def _parsed(body: bytes, kind: type[T]) -> T:
    if body.count(b":") > KEYS or sum(body.count(mark) for mark in (b",", b"[", b"{")) > MOST + 10:
        raise ServiceError(
            413, "too_many_items", f"The body has more than {MOST} elements or {KEYS} keys. Send fewer.", {"limit": MOST}
        )
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None
