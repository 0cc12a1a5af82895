"""Teaches schemathesis (SCHEMATHESIS_HOOKS=tests.services.openapi_hooks) what an OpenAPI document can't say of valid requests."""

from __future__ import annotations

import base64
import os
from functools import lru_cache
from typing import Any

import httpx
import schemathesis
from hypothesis import strategies as st

from tests.makers import smooth

IMAGES = [smooth(seed, kind=kind) for seed, kind in enumerate(("JPEG", "PNG", "WEBP"))]
TEXTS = [base64.b64encode(image).decode() for image in IMAGES] + ["data:image/png;base64," + base64.b64encode(IMAGES[1]).decode()]

images = st.sampled_from(IMAGES)
schemathesis.openapi.format("image", st.sampled_from(TEXTS))
schemathesis.openapi.format("binary", images)
schemathesis.openapi.media_type("application/octet-stream", images)
schemathesis.openapi.media_type("image/*", images, aliases=["image/jpeg", "image/png", "image/webp"])


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:
    return _valid(case)


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: object) -> None:
    _valid(case)


@lru_cache
def _model(url: str) -> dict[str, Any]:
    card: dict[str, Any] = httpx.get(f"{url}/v1/models", headers={"X-API-Key": os.environ.get("SWAV_TEST_KEY", "")}).json()[
        "models"
    ][0]
    return card


def _valid(case: schemathesis.Case) -> schemathesis.Case:
    """Of two places of a setting, and of two parameters that exclude each other, one. Vectors and dimensions fit the model."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return case
    query = case.query or {}
    if case.method == "GET" and case.path == "/v1/neighbors":
        if query.get("key") is None:
            query.setdefault("id", 3)
        else:
            query.pop("id", None)
    body = case.body
    if isinstance(body, dict):
        for name in query:
            body.pop(name, None)
        model = _model(case.operation.schema.get_base_url().rstrip("/"))
        if "vector" in body:
            body["vector"] = [1.0] * model["feature_dim"]
        for name in ("dimensions", "output_dimension"):
            if body.get(name) is not None:
                body[name] = min(int(body[name]), model["projection_dim"])
        if case.path == "/v1/items":
            if case.media_type == "application/json":
                body["images"] = [{"base64": TEXTS[0], "name": f"{place}"} for place, _ in enumerate(body["images"])]
            body.pop("key", None)
            query.pop("key", None)
    elif case.path == "/v1/items":
        query["key"] = query.get("key") or "a"
    case.query = query
    return case
