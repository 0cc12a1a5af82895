"""What gateways and browsers expect of HTTP: HEAD, prefixes, final slashes, CORS, security headers, one error shape."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.embeddings.edge.docs import router as docs
from services.embeddings.edge.drain import Drain
from services.embeddings.errors import INTERNAL, Fault, answer
from services.embeddings.settings import ServiceSettings

log = logging.getLogger(__name__)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Of every answer that does not set them itself."""

ALLOWED_HEADERS = ("authorization", "x-api-key", "content-type")
PREFLIGHT_SECONDS = 600


def install(app: FastAPI, settings: ServiceSettings) -> None:
    """Puts the edge around the application. Call it last: what is added later is farther out."""
    app.state.drain = Drain(settings.notice)
    app.include_router(docs)
    app.add_middleware(_Failures)
    app.add_middleware(_Paths, prefix=settings.root_path, drain=app.state.drain)
    app.add_middleware(_Headers)
    if settings.origins:
        app.add_middleware(_Cors, origins=settings.origins)


class _Failures:
    """Answers what no handler caught. Starlette would do so outside of all middleware, without their headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if started or scope["type"] != "http":
                raise
            log.exception("unexpected error in %s %s", scope["method"], scope["path"])
            await answer(500, INTERNAL)(scope, receive, send)


class _Paths:
    """HEAD as GET without the body; the same route with and without a final slash, below the prefix and without it."""

    def __init__(self, app: ASGIApp, prefix: str, drain: Drain) -> None:
        self.app = app
        self.prefix = "/" + prefix.strip("/") if prefix.strip("/") else ""
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head, path = scope["method"] == "HEAD", self._path(scope["path"])
        scope = {**scope, "root_path": self.prefix, "path": self.prefix + path, "method": "GET" if head else scope["method"]}

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        if self.drain.begun and path == "/readyz":
            told = Fault("not_ready", "The service is shutting down. Retry elsewhere.")
            await answer(503, told, {"Retry-After": "1"})(scope, receive, without_body if head else send)
            return
        await self.app(scope, receive, without_body if head else send)

    def _path(self, path: str) -> str:
        if self.prefix and (path == self.prefix or path.startswith(self.prefix + "/")):
            path = path[len(self.prefix) :]
        return path.rstrip("/") or "/"


class _Headers:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers)


class _Cors(CORSMiddleware):
    """Pages of the named origins may ask; credentials are keys in headers, never cookies."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=ALLOWED_HEADERS,
            expose_headers=("Retry-After",),
            max_age=PREFLIGHT_SECONDS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        told = bytes(response.body).decode()
        fault = Fault("cross_origin", f"This page may not ask so: {told}. Allow its origin with `swav serve --allow-origin`.")
        return answer(403, fault, {"Vary": "Origin"})
