"""Reads the images of a request: multipart form, JSON, or one raw image. Limits what is read."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from services.embeddings.body import Held, read
from services.embeddings.edge import base64text
from services.embeddings.edge.access import caller_of, guard_of
from services.embeddings.edge.dialects import Dialect, Source, Text
from services.embeddings.edge.fetch import Fetcher
from services.embeddings.edge.names import nearest, refuse_unknown
from services.embeddings.edge.settings import Settings
from services.embeddings.errors import Fault, ServiceError, image_fault
from services.embeddings.settings import Limits
from services.embeddings.state import current
from swav_platform.data.ledger.outcomes import Outcome

_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")

MARKS = 40
"""Commas, colons and brackets that a JSON body may have for each allowed image. Small objects would fill the memory."""


@dataclass(frozen=True)
class Item:
    name: str | None  # file name, if the client sent one
    data: bytes
    fault: Fault | None = None  # it is known before decoding that this is no image
    url: tuple[str, str] | None = None  # place in the request and URL of an image that is still to be fetched
    vector: np.ndarray | None = None  # float32 [D] of unit length, sent instead of an image


@dataclass(frozen=True)
class Asked:
    """The images and the settings of a request, and the dialect to answer in."""

    items: list[Item]
    settings: Any  # of the class that the dialect names
    dialect: Dialect


@asynccontextmanager
async def asked(request: Request, dialects: Sequence[Dialect], query: Settings | None) -> AsyncIterator[Asked]:
    """Reads a request; its bytes count as held until the end of the block.

    dialects: those of the route; forms and raw images speak the first. query: the settings of the query.
    Raises ServiceError for a body without images, with too many, with unknown names, or unreadable.
    """
    service = current(request)
    limits = service.settings.limits
    kind = _media_type(request, dialects)
    given = query.model_dump(exclude_unset=True) if query else {}
    with service.bodies.open() as held:
        if kind == "application/json":
            body = await _whole(read(request, limits.max_body, held))
            found = await asyncio.to_thread(_json, body, dialects, given, limits)
        elif kind == "multipart/form-data":
            found = await _multipart(request, held, dialects[0], given, limits)
        else:
            data = await _whole(read(request, limits.max_bytes, held))
            if not data:
                raise ServiceError(422, "no_images", "The body is empty. Send the bytes of an image.")
            found = Asked([Item(None, data)], _settings(dialects[0], given, {}, "body", strict=False), dialects[0])
        guard_of(request).spend(caller_of(request), len(found.items) - 1)
        found = replace(found, items=await _fetched(request, found.items, held))
        for item in found.items:
            if item.fault:
                service.metrics.images.labels(item.fault.code).inc()
        yield found


async def _fetched(request: Request, items: list[Item], held: Held) -> list[Item]:
    """The items with the images that were named by URL."""
    urls = [item.url for item in items if item.url]
    fetcher: Fetcher | None = request.app.state.fetcher
    if not urls:
        return items
    if fetcher is None:
        found: Iterable[bytes | Fault] = [_url_fault(place) for place, _ in urls]
    else:
        held.bodies.admit(len(items))
        found = await fetcher.fetch(urls, held)
    images = iter(found)
    return [_with(item, next(images)) if item.url else item for item in items]


def _with(item: Item, image: bytes | Fault) -> Item:
    return Item(item.name, b"", image) if isinstance(image, Fault) else Item(item.name, image)


def _url_fault(place: str) -> Fault:
    message = (
        f"{place} is a URL, and this service fetches none. Send the image itself as base64, or start the service with "
        "`swav serve --allow-urls HOST`."
    )
    return Fault("url_not_allowed", message, {"where": place})


def _media_type(request: Request, dialects: Sequence[Dialect]) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        message = f"Content encoding {encoding[:40]!r} is not supported. Send the body uncompressed."
        raise ServiceError(415, "unsupported_media_type", message, {"content_encoding": encoding[:40]})
    files = dialects[0].name == "own" and (
        kind in ("multipart/form-data", "application/octet-stream") or kind.startswith("image/")
    )
    if files or kind == "application/json":
        return kind
    message = f"Content type {kind[:80]!r} is not supported. Send " + (
        "multipart/form-data with `images` files, one image as image/* or application/octet-stream, "
        "or application/json with base64."
        if dialects[0].name == "own"
        else "application/json."
    )
    raise ServiceError(415, "unsupported_media_type", message, {"content_type": kind[:80]})


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _multipart(request: Request, held: Held, dialect: Dialect, query: Mapping[str, Any], limits: Limits) -> Asked:
    chunks: AsyncGenerator[bytes, None] = read(request, limits.max_body, held)
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
            raise _no_images("The form has no file field named `images`.", form.keys(), ("images",))
        texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        others = [name for name, value in form.multi_items() if name != "images" and not isinstance(value, str)]
        refuse_unknown("form", others, ("images",))
        settings = _settings(dialect, query, texts, "form", strict=False)
        for file in files:
            _check_size(file.size or 0, limits, len(files))
        items = [Item(file.filename or None, await file.read(limits.max_bytes + 1)) for file in files]
        return Asked(items, settings, dialect)
    finally:
        await form.close()


def _json(body: bytes, dialects: Sequence[Dialect], query: Mapping[str, Any], limits: Limits) -> Asked:
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > MARKS * max(limits.max_items, 64) + sum(
        d.numbers for d in dialects
    ):
        message = "The JSON body has too many elements for a list of images. Split it into several requests."
        raise ServiceError(422, "invalid_request", message)
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServiceError(422, "invalid_request", f"The body is not valid JSON: {str(error)[:200]}") from None
    keys = [key for dialect in dialects for key in dialect.sources]
    dialect = next((d for d in dialects if isinstance(tree, dict) and set(d.sources) & set(tree)), None)
    if dialect is None:
        names = list(tree) if isinstance(tree, dict) else []
        raise _no_images(f"The body must be a JSON object with {' or '.join(f'`{key}`' for key in keys)}.", names, keys)
    key, *second = [key for key in dialect.sources if key in tree]
    if second:
        raise ServiceError(422, "invalid_request", f"The body has both {key!r} and {second[0]!r}. Send one of them.")
    settings = _settings(dialect, query, {k: v for k, v in tree.items() if k != key}, "body", strict=True, keys=keys)
    return Asked(_items(key, tree[key], dialect, limits), settings, dialect)


def _items(key: str, value: Any, dialect: Dialect, limits: Limits) -> list[Item]:
    source = dialect.sources[key]
    if source.read is None:
        return [Item(None, b"", vector=_vector(key, value, source))]
    if isinstance(value, list) and len(value) > limits.max_items:
        raise _too_many(limits)
    texts = source.read(value)
    if texts is None:
        raise ServiceError(422, "invalid_request", f"`{key}` must be {source.shape}.", {"where": key})
    if not texts:
        raise ServiceError(422, "no_images", f"`{key}` is empty. Send at least one image.")
    return [_item(f"{key}[{index}]", text, limits, len(texts)) for index, text in enumerate(texts)]


def _vector(key: str, value: Any, source: Source) -> np.ndarray:
    """float32 [D] of unit length."""
    if isinstance(value, list) and value and all(type(number) in (int, float) for number in value):
        try:
            vector = np.array(value, np.float64)
            largest = float(np.abs(vector).max())
        except OverflowError:
            largest = math.inf
        if 0 < largest < math.inf:
            vector /= largest  # squares of large numbers would overflow
            return np.asarray(vector / np.linalg.norm(vector), np.float32)
    raise ServiceError(422, "invalid_request", f"`{key}` must be {source.shape}.", {"where": key})


def _item(place: str, named: Text, limits: Limits, count: int) -> Item:
    name, text = named
    if _URL.match(text):
        return Item(name, b"", url=(place, text.strip()))
    try:
        data = base64text.decode(text)
    except ValueError as error:
        message = f"{place} is no image as base64 or data URI: {error}."
        return Item(name, b"", Fault("invalid_base64", message, {"where": place}))
    _check_size(len(data), limits, count)
    return Item(name, data)


def _settings(
    dialect: Dialect, query: Mapping[str, Any], body: Mapping[str, Any], where: str, *, strict: bool, keys: Iterable[str] = ()
) -> Settings:
    """Of query and body together. strict: JSON has types, while a form has texts only."""
    known = dialect.settings.model_fields
    understood = {name: value for name, value in body.items() if name in known and isinstance(value, str | int | float)}
    refuse_unknown(where, body, [*known, *(keys or dialect.sources)], understood)
    if misplaced := set(body) & set(keys):
        raise ServiceError(422, "invalid_request", f"The body has images in {min(misplaced)!r} and elsewhere. Send one of them.")
    try:
        told = dialect.settings.model_validate({name: _whole_number(value) for name, value in body.items()}, strict=strict)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": (where, *fault["loc"])} for fault in error.errors()]) from None
    for name, value in query.items():
        if name in body and getattr(told, name) != value:
            raise ServiceError(422, "invalid_request", f"{name!r} differs between the query and the {where}. Send it once.")
    return told.model_copy(update={name: value for name, value in query.items() if name in known})


def _whole_number(value: Any) -> Any:
    """JSON does not tell 3.0 from 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_images(message: str, names: Iterable[str], keys: Sequence[str]) -> ServiceError:
    given = sorted(map(str, names))[:10]
    near = next((found for name in given if (found := nearest(name, keys))), None)
    hint = f" Did you mean {near!r}?" if near else ""
    return ServiceError(422, "no_images", message + hint, {"fields": given, "nearest": near})


def _check_size(size: int, limits: Limits, count: int) -> None:
    """Fails the request if its only image is too large. Among several images, the decoder reports a large one as bad."""
    if count == 1 and size > limits.max_bytes:
        reason = f"larger than max_bytes, {limits.max_bytes}"
        fault = image_fault(Outcome.TOO_MANY_BYTES, reason)
        raise ServiceError(413, fault.code, fault.message, fault.detail)


def _too_many(limits: Limits) -> ServiceError:
    message = f"The request has more than {limits.max_items} images. Split it into several requests."
    return ServiceError(413, "too_many_items", message, {"limit": limits.max_items})


def body_schema(dialects: Sequence[Dialect]) -> dict[str, Any]:
    """The request body for OpenAPI, as the routes read it themselves."""
    content: dict[str, Any] = {"application/json": {"schema": {"anyOf": [s for d in dialects for s in _schemas(d)]}}}
    if dialects[0].name == "own":
        binary = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
        files = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
        form = _object(dialects[0], "images", files)
        content |= {"multipart/form-data": {"schema": form}, "application/octet-stream": binary, "image/*": binary}
    return {"requestBody": {"required": True, "content": content}}


def _schemas(dialect: Dialect) -> list[dict[str, Any]]:
    return [_object(dialect, key, source.schema) for key, source in dialect.sources.items()]


def _object(dialect: Dialect, key: str, images: Mapping[str, Any]) -> dict[str, Any]:
    properties = dialect.settings.model_json_schema()["properties"]
    return {"type": "object", "required": [key], "properties": {key: images, **properties}, "additionalProperties": False}
