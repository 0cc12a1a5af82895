"""Model, health, version, metrics and the start page."""

from __future__ import annotations

import html
import platform

import torch
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
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


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def home(request: Request) -> HTMLResponse:
    state = current(request)
    samples = "no stored samples" if state.store is None else f"{state.store.samples} stored samples"
    name = html.escape(state.model.name)
    about = f"model <b>{name}</b> ({state.model.digest}), {len(state.model.prototypes)} clusters, {samples}"
    return HTMLResponse(PAGE.replace("ABOUT", about))


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>swav-platform: embeddings</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem }
pre { background: #f3f3f3; padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere }
</style>
<h1>Embeddings service</h1>
<p>Returns the embedding, clusters and nearest stored samples of an image. It serves the ABOUT.</p>
<pre>curl --data-binary @photo.jpg -H 'content-type: image/jpeg' ORIGIN/v1/embeddings
curl -F images=@a.jpg -F images=@b.jpg 'ORIGIN/v1/clusters?top=3'
curl -F images=@a.jpg 'ORIGIN/v1/neighbors?k=5'</pre>
<p><a href="docs">/docs</a> lists all routes (it loads scripts from a public CDN;
<a href="openapi.json">/openapi.json</a> does not).
See also <a href="v1/models">/v1/models</a>, <a href="v1/clusters">/v1/clusters</a>, <a href="metrics">/metrics</a>.</p>
<script>
const curl = document.querySelector('pre');
curl.textContent = curl.textContent.replaceAll('ORIGIN', location.origin);
</script>
</html>
"""
