"""Completes the OpenAPI document: errors that every route may answer, and the keys that it asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
INVALID = "Unknown or invalid parameter"
GUARDED = {"401": "No valid key", "403": "The key lacks a scope", "429": "The rate of the key is used up"}
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
FOREIGN = ("HTTPValidationError", "ValidationError")  # FastAPI's errors, which the service never sends


def install(app: FastAPI, routers: Iterable[APIRouter], *, keys: bool) -> None:
    """keys: whether the service asks for keys."""
    guarded = {
        (route.path_format, method.lower())
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute) and any(hasattr(each.dependency, "scopes") for each in route.dependencies)
        for method in route.methods or ()
    }
    make = app.openapi

    def document() -> dict[str, Any]:
        told = make()
        for path, methods in told["paths"].items():
            for method, operation in methods.items():
                _complete(operation, guarded=keys and (path, method) in guarded)
        for name in FOREIGN:
            told["components"]["schemas"].pop(name, None)
        if keys:
            told["components"]["securitySchemes"] = SCHEMES
        return told

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI's manual tells


def _complete(operation: dict[str, Any], *, guarded: bool) -> None:
    responses = operation["responses"]
    invalid = responses.get("422", {}).get("description", INVALID)
    responses["422"] = {"description": INVALID if invalid == "Validation Error" else invalid, "content": ERROR}
    if guarded:
        operation["security"] = [{name: []} for name in SCHEMES]
        responses |= {code: {"description": text, "content": ERROR} for code, text in GUARDED.items()}
