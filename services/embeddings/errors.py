"""Error responses. All have one shape: {"error": {"code", "message", "detail"}}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from services.embeddings.answers import Json
from swav_platform.data.ledger.outcomes import Outcome


@dataclass(frozen=True)
class Fault:
    """An error as clients see it. For a bad image, the code is the word of its outcome."""

    code: str
    message: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "detail": dict(self.detail)}


PROBLEMS = 20  # that an answer names

INTERNAL = Fault("internal_error", "Internal error. The cause is in the log of the service.")


class ServiceError(Exception):
    """Fails a request with an HTTP status and an error body."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        detail: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.fault = Fault(code, message, detail or {})
        self.headers = dict(headers or {})


def image_fault(outcome: Outcome, reason: str) -> Fault:
    return Fault(outcome.word, f"The image was refused ({outcome.word}): {reason}", {"reason": reason})


def busy(what: str, seconds: int = 1) -> ServiceError:
    message = f"The service is at capacity ({what}). Retry in {seconds} s."
    return ServiceError(503, "busy", message, headers={"Retry-After": str(seconds)})


def answer(status: int, fault: Fault, headers: Mapping[str, str] | None = None) -> Json:
    return Json({"error": fault.as_json()}, status_code=status, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Registers handlers, so that every failure of a request has the one shape."""
    app.add_exception_handler(ServiceError, _own)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)


async def _own(request: Request, error: Exception) -> Json:
    assert isinstance(error, ServiceError)
    request.app.state.service.metrics.refusals.labels(error.fault.code).inc()
    return answer(error.status, error.fault, error.headers)


async def _http(request: Request, error: Exception) -> Json:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        fault = Fault("not_found", f"There is no route {request.url.path}. See /docs for the routes.")
    elif error.status_code == 405:
        allowed = ", ".join(_methods(request))
        fault = Fault("method_not_allowed", f"{request.url.path} does not support {request.method}. Use {allowed}.")
        return answer(405, fault, {"Allow": allowed})
    else:
        fault = Fault("http_error", str(error.detail))
    return answer(error.status_code, fault, error.headers)


def _methods(request: Request) -> list[str]:
    """All methods of the path. Starlette names those of the first route only."""
    found = []
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes):
            found += ["GET", "HEAD"] if method == "GET" else [method]
    return found


async def _invalid(request: Request, error: Exception) -> Json:
    assert isinstance(error, RequestValidationError)
    problems = [{"where": ".".join(str(p)[:80] for p in e["loc"]), "problem": e["msg"]} for e in error.errors()[:PROBLEMS]]
    told = "; ".join(f"{p['where']}: {p['problem']}" for p in problems)
    return answer(422, Fault("invalid_request", f"The request is invalid: {told}.", {"problems": problems}))


async def _gone(request: Request, error: Exception) -> Json:
    return answer(400, Fault("incomplete_body", "The connection closed before the whole body was received."))


async def _unexpected(request: Request, error: Exception) -> Json:
    return answer(500, INTERNAL)  # uvicorn logs the traceback
