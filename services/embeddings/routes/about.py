"""Model, health, version and metrics."""

from __future__ import annotations

import platform

import torch
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.embeddings.answers import ErrorAnswer, Json, ModelsAnswer
from services.embeddings.edge.access import require
from services.embeddings.errors import ServiceError
from services.embeddings.state import current
from swav_platform import __version__

router = APIRouter()

ANY_KEY = [Depends(require())]


@router.get("/v1/models", response_model=ModelsAnswer, dependencies=ANY_KEY)
async def models(request: Request) -> Json:
    """The served model, and the number of stored samples."""
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
    return Json({"models": [card]})


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
