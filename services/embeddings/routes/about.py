"""Model, health, version and metrics."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import torch
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.convertors import StringConvertor, register_url_convertor

from services.embeddings.answers import ErrorAnswer, Json, ModelEntry, ModelsAnswer
from services.embeddings.edge.access import require
from services.embeddings.errors import ServiceError
from services.embeddings.metrics import latest
from services.embeddings.models.live import Models
from services.embeddings.state import State, current
from swav_platform import __version__

router = APIRouter()

ANY_KEY = [Depends(require())]
PROMETHEUS: dict[int | str, dict[str, Any]] = {200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}}


class _ModelName(StringConvertor):
    """All but the name of a route of its own, which would else seem to have the methods of this one, too."""

    regex = "(?!reload$)[^/]+"


register_url_convertor("model_name", _ModelName())


@router.get("/v1/models", response_model=ModelsAnswer, dependencies=ANY_KEY)
async def models(request: Request) -> Json:
    """The served models, and the numbers of stored samples. `data` is OpenAI's list."""
    live: Models = request.app.state.service
    cards = [_card(name, state) for name, state in live.states.items()]
    return Json({"object": "list", "data": _entries(live.states), "models": cards})


def _card(name: str, state: State) -> dict[str, Any]:
    model = state.model
    return {
        "name": name,
        "digest": model.digest,
        "runtime": model.runtime.name,
        "feature_dim": model.feature_dim,
        "projection_dim": model.projection_dim,
        "prototypes": len(model.prototypes),
        "input_size": model.input_size,
        "temperature": model.temperature,
        **{name: model.meta.get(name) for name in ("run", "run_id", "created")},
        "samples": None if state.store is None else state.store.samples,
    }


@router.get(
    "/v1/models/{name:model_name}", response_model=ModelEntry, responses={404: {"model": ErrorAnswer}}, dependencies=ANY_KEY
)
async def model(request: Request, name: str) -> Json:
    """One model, in OpenAI's words."""
    entries = _entries(request.app.state.service.states)
    for entry in entries:
        if entry["id"] == name:
            return Json(entry)
    served = ", ".join(entry["id"] for entry in entries)
    raise ServiceError(404, "no_such_model", f"There is no model {name[:80]!r}. This service has: {served}.")


def _entries(states: Mapping[str, State]) -> list[dict[str, Any]]:
    return [
        {"id": name, "object": "model", "created": _epoch(state.model.meta.get("created")), "owned_by": "swav-platform"}
        for name, state in states.items()
    ]


def _epoch(created: str | None) -> int:
    """Seconds since 1970 of a date in ISO 8601; 0 if it is not known."""
    try:
        return int(datetime.fromisoformat(created or "").timestamp())
    except ValueError:
        return 0


@router.get("/healthz")
async def healthz() -> Json:
    """200 while the process is alive."""
    return Json({"status": "ok"})


@router.get("/readyz", responses={503: {"model": ErrorAnswer}})
async def readyz(request: Request) -> Json:
    """200 while a test image can be encoded, else 503. `refused` tells why a new version of a model is not used."""
    models: Models = request.app.state.service
    if not all(state.engine.ready for state in models.states.values()):
        raise ServiceError(503, "not_ready", "The service is starting or shutting down. Retry later.")
    if because := await models.broken():
        raise ServiceError(503, "not_ready", f"The service can't encode: {because}. Its log has the cause.")
    return Json({"status": "ready", **({"refused": models.refused} if models.refused else {})})


@router.get("/version", dependencies=ANY_KEY)
async def versions() -> Json:
    """Versions of the platform, Python and torch."""
    return Json(
        {"name": "swav-platform", "version": __version__, "python": platform.python_version(), "torch": torch.__version__}
    )


@router.get("/metrics", response_class=Response, responses=PROMETHEUS, dependencies=ANY_KEY)
async def metrics(request: Request) -> Response:
    """Metrics in the Prometheus text format."""
    return Response(latest(current(request).metrics), media_type=CONTENT_TYPE_LATEST)
