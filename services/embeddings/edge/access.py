"""Who may ask what: keys from a file or the environment, scopes, and a rate for each key.

A route names its scope: `@router.post("/v1/models/reload", dependencies=[Depends(require("admin"))])`. FastAPI resolves the
dependencies of a route before its parameters, so that a stranger's body is never read.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import Request

from services.embeddings.edge import keys
from services.embeddings.edge.keys import SCOPES, Key, Keys
from services.embeddings.errors import ServiceError
from swav_platform.errors import UserError

log = logging.getLogger(__name__)

VARIABLE = "SWAV_API_KEYS"
"""Environment variable that holds the content of a key file."""

RECHECK = 1.0
"""Seconds between two looks at the key file: a revoked key works at most so long."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request. Without keys, everybody is the same caller and may do everything."""

    scopes: frozenset[str] = frozenset(SCOPES)
    key: Key | None = None

    def may(self, scope: str) -> bool:
        return scope in self.scopes


ANYONE = Caller()


@dataclass
class _Bucket:
    """Images that a key may still send. Refills at the key's rate up to a minute's worth."""

    left: float
    at: float


@dataclass
class Guard:
    """Checks keys. `path` is looked at again while requests arrive; a file that can't be read leaves the old keys valid."""

    known: Keys | None = None  # None: no keys are asked for
    path: Path | None = None
    origins: Sequence[str] = ()  # of pages that may change things, if there are no keys
    _seen: tuple[int, ...] = ()
    _looked: float = -math.inf
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def caller(self, request: Request) -> Caller:
        """Raises ServiceError 401 without a valid key."""
        self._refresh()
        if self.known is None:
            return ANYONE
        text = _given(request)
        if text is None:
            raise _unauthorized("This service needs an API key. Send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.")
        key = keys.find(self.known, text)
        if key is None:
            raise _unauthorized("The API key is not valid: it is mistyped, was revoked or has expired. Ask for a new one.")
        return Caller(key.scopes, key)

    def admit(self, caller: Caller) -> None:
        """Takes one image from the key's rate. Raises ServiceError 429 for a key that has used up its rate."""
        key = caller.key
        if key is None or key.per_minute is None:
            return
        now, rate = time.monotonic(), key.per_minute / 60
        with self._lock:
            bucket = self._buckets.setdefault(key.id, _Bucket(key.per_minute, now))
            bucket.left = min(key.per_minute, bucket.left + (now - bucket.at) * rate)
            bucket.at = now
            if bucket.left >= 1:
                bucket.left -= 1
                return
            seconds = math.ceil((1 - bucket.left) / rate)
        message = f"The key {key.name!r} may send {key.per_minute} images a minute. Retry in {seconds} s."
        raise ServiceError(429, "too_many_requests", message, {"per_minute": key.per_minute}, {"Retry-After": str(seconds)})

    def spend(self, caller: Caller, images: int) -> None:
        """Takes the other images of an admitted request, once they are known. The rate may be overdrawn."""
        if caller.key and caller.key.per_minute:
            with self._lock:
                self._buckets[caller.key.id].left -= images

    def _refresh(self) -> None:
        if self.path is None or time.monotonic() - self._looked < RECHECK:
            return
        self._looked = time.monotonic()
        try:
            seen = _state(self.path)
            if seen != self._seen:
                self.known, self._seen = keys.read(self.path), seen
                log.warning("read %d API keys from %s", len(self.known), self.path)
        except (OSError, UserError) as error:
            log.error("the API keys stay as they were: %s", error)


def _state(path: Path) -> tuple[int, ...]:
    told = path.stat()
    return told.st_ino, told.st_size, told.st_mtime_ns


def open_guard(path: Path | None, environment: Mapping[str, str] = os.environ) -> Guard:
    """Keys of a file, else of the variable SWAV_API_KEYS, else none. Raises UserError for keys that cannot be read."""
    if path is not None:
        seen = _state(path) if path.is_file() else ()
        return Guard(keys.read(path), path, _seen=seen)
    text = environment.get(VARIABLE, "")
    return Guard(keys.loads(text, f"The variable {VARIABLE}")) if text else Guard()


def _given(request: Request) -> str | None:
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and text.strip():
        return text.strip()
    return request.headers.get("x-api-key")


def _unauthorized(message: str) -> ServiceError:
    return ServiceError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})


def require(*scopes: str) -> Callable[[Request], Awaitable[Caller]]:
    """A FastAPI dependency: the caller, who has all the scopes. Without scopes, any valid key will do.

    It raises ServiceError 401 without a valid key, 403 for a key that lacks a scope, 429 for one that has used up its rate.
    """
    if unknown := set(scopes) - set(SCOPES):
        raise ValueError(f"unknown scopes: {unknown}")

    async def check(request: Request) -> Caller:
        guard = guard_of(request)
        caller = guard.caller(request)
        for scope in scopes:
            if not caller.may(scope):
                raise forbidden(caller, scope)
        if caller.key is None and "admin" in scopes:
            _check_page(request, guard.origins)
        guard.admit(caller)
        request.state.caller = caller
        return caller

    check.scopes = scopes  # type: ignore[attr-defined]  # tests ask every route for it
    return check


def _check_page(request: Request, origins: Sequence[str]) -> None:
    """Raises ServiceError 403 for a page of another site: a browser inside may reach a service without keys, its pages may not."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin in origins or "*" in origins:
        return
    own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not (own if site is None else site in ("same-origin", "none")):
        message = (
            "A page of another site may not change anything here. Allow its origin with `swav serve --allow-origin`, or use keys."
        )
        raise ServiceError(403, "cross_origin", message)


def forbidden(caller: Caller, scope: str) -> ServiceError:
    name = caller.key.name if caller.key else ""
    message = f"The key {name!r} lacks the scope {scope!r}. Use a key that has it."
    return ServiceError(403, "forbidden", message, {"needed": scope, "scopes": sorted(caller.scopes)})


def guard_of(request: Request) -> Guard:
    guard: Guard = request.app.state.guard
    return guard


def caller_of(request: Request) -> Caller:
    """The caller whom `require` let in."""
    caller: Caller = request.state.caller
    return caller
