"""Reads the images of a request: multipart form, JSON with base64, or one raw image. Limits what is read."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from services.embeddings.body import read
from services.embeddings.edge.access import caller_of, guard_of
from services.embeddings.errors import ServiceError, image_fault
from services.embeddings.settings import Limits
from services.embeddings.state import current
from swav_platform.data.ledger.outcomes import Outcome


@dataclass(frozen=True)
class Item:
    name: str | None  # file name, if the client sent one
    data: bytes


async def _items(request: Request) -> AsyncIterator[list[Item]]:
    """The images of the request, in order. Raises ServiceError for a body without images, with too many, or unreadable."""
    service = current(request)
    limits = service.settings.limits
    kind = _media_type(request)
    with service.bodies.open() as held:
        if kind == "multipart/form-data":
            items = await _multipart(request, read(request, limits.max_body, held), limits)
        elif kind == "application/json":
            body = await _whole(read(request, limits.max_body, held))
            items = await asyncio.to_thread(_json, body, limits)
        else:
            items = [Item(None, await _whole(read(request, limits.max_bytes, held)))]
            if not items[0].data:
                raise ServiceError(422, "no_images", "The body is empty. Send the bytes of an image.")
        guard_of(request).spend(caller_of(request), len(items) - 1)
        yield items


Items = Annotated[list[Item], Depends(_items)]


def _media_type(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        message = f"Content encoding {encoding[:40]!r} is not supported. Send the body uncompressed."
        raise ServiceError(415, "unsupported_media_type", message, {"content_encoding": encoding[:40]})
    if kind in ("multipart/form-data", "application/json", "application/octet-stream") or kind.startswith("image/"):
        return kind
    message = (
        f"Content type {kind[:80]!r} is not supported. Send multipart/form-data with `images` files, "
        "one image as image/* or application/octet-stream, or application/json with base64."
    )
    raise ServiceError(415, "unsupported_media_type", message, {"content_type": kind[:80]})


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _multipart(request: Request, chunks: AsyncGenerator[bytes, None], limits: Limits) -> list[Item]:
    parser = MultiPartParser(request.headers, chunks, max_files=limits.max_items, max_fields=limits.max_items)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise _too_many(limits) from None
        raise ServiceError(422, "invalid_request", f"Cannot read the multipart body: {error.message}") from None
    try:
        files = [value for name, value in form.multi_items() if name == "images" and isinstance(value, UploadFile)]
        if not files:
            raise ServiceError(
                422, "no_images", "The form has no file field named `images`.", {"fields": sorted(form.keys())[:10]}
            )
        for file in files:
            _check_size(file.size or 0, limits, len(files))
        return [Item(file.filename or None, await file.read(limits.max_bytes + 1)) for file in files]
    finally:
        await form.close()


def _json(body: bytes, limits: Limits) -> list[Item]:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServiceError(422, "invalid_request", f"The body is not valid JSON: {str(error)[:200]}") from None
    images = tree.get("images") if isinstance(tree, dict) else None
    if not isinstance(images, list) or not images:
        raise ServiceError(422, "no_images", 'The body must be {"images": [{"base64": "..."}, ...]} with at least one image.')
    if len(images) > limits.max_items:
        raise _too_many(limits)
    return [_json_item(index, image, limits, len(images)) for index, image in enumerate(images)]


def _json_item(index: int, image: Any, limits: Limits, count: int) -> Item:
    text = image.get("base64") if isinstance(image, dict) else None
    name = image.get("name") if isinstance(image, dict) else None
    if not isinstance(text, str) or not isinstance(name, str | None):
        message = f'images[{index}] must be an object with "base64" (text) and, optionally "name" (text).'
        raise ServiceError(422, "invalid_request", message, {"index": index})
    _check_size(len(text) * 3 // 4 - 2, limits, count)
    try:
        return Item(name, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ServiceError(422, "invalid_request", f"images[{index}].base64 is not valid base64.", {"index": index}) from None


def _check_size(size: int, limits: Limits, count: int) -> None:
    """Fails the request if its only image is too large. Among several images, the decoder reports a large one as bad."""
    if count == 1 and size > limits.max_bytes:
        reason = f"larger than max_bytes, {limits.max_bytes}"
        fault = image_fault(Outcome.TOO_MANY_BYTES, reason)
        raise ServiceError(413, fault.code, fault.message, fault.detail)


def _too_many(limits: Limits) -> ServiceError:
    message = f"The request has more than {limits.max_items} images. Split it into several requests."
    return ServiceError(413, "too_many_items", message, {"limit": limits.max_items})


_BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY: dict[str, Any] = {  # for /docs, as the routes read the body themselves
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/octet-stream": _BINARY,
            "image/*": _BINARY,
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["base64"],
                                "properties": {"base64": {"type": "string"}, "name": {"type": "string"}},
                            },
                        }
                    },
                }
            },
        },
    }
}
