"""Model, health, version and metrics."""

from __future__ import annotations

import platform
from datetime import datetime
from typing import Any

import torch
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.embeddings.answers import ErrorAnswer, Json, ModelEntry, ModelsAnswer
from services.embeddings.edge.access import require
from services.embeddings.errors import ServiceError
from services.embeddings.state import State, current
from swav_platform import __version__

router = APIRouter()

ANY_KEY = [Depends(require())]


@router.get("/v1/models", response_model=ModelsAnswer, dependencies=ANY_KEY)
async def models(request: Request) -> Json:
    """The served model, and the number of stored samples. `data` is OpenAI's list."""
    state = current(request)
    model = state.model
    card = {
        **state.model_name(),
        "feature_dim": model.feature_dim,
        "projection_dim": model.projection_dim,
        "prototypes": len(model.prototypes),
        "input_size": model.input_size,
        "temperature": model.temperature,
        **{name: model.meta.get(name) for name in ("run", "run_id", "created")},
        "samples": None if state.store is None else state.store.samples,
    }
    return Json({"object": "list", "data": _entries(state), "models": [card]})


@router.get("/v1/models/{name}", response_model=ModelEntry, responses={404: {"model": ErrorAnswer}}, dependencies=ANY_KEY)
async def model(request: Request, name: str) -> Json:
    """One model, in OpenAI's words."""
    entries = _entries(current(request))
    for entry in entries:
        if entry["id"] == name:
            return Json(entry)
    served = ", ".join(entry["id"] for entry in entries)
    raise ServiceError(404, "no_such_model", f"There is no model {name[:80]!r}. This service has: {served}.")


def _entries(state: State) -> list[dict[str, Any]]:
    made = _epoch(state.model.meta.get("created"))
    return [{"id": state.model.name, "object": "model", "created": made, "owned_by": "swav-platform"}]


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
    """200 while images can be encoded, else 503."""
    if not current(request).engine.ready:
        raise ServiceError(503, "not_ready", "The service is starting or shutting down. Retry later.")
    return Json({"status": "ready"})


@router.get("/version", dependencies=ANY_KEY)
async def versions() -> Json:
    """Versions of the platform, Python and torch."""
    return Json(
        {"name": "swav-platform", "version": __version__, "python": platform.python_version(), "torch": torch.__version__}
    )


@router.get("/metrics", dependencies=ANY_KEY)
async def metrics(request: Request) -> Response:
    """Metrics in the Prometheus text format."""
    return Response(generate_latest(current(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)
