"""The embeddings service as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.embeddings import errors
from services.embeddings.answers import Json
from services.embeddings.body import Bodies
from services.embeddings.engine import Engine
from services.embeddings.metrics import Measured, make_metrics
from services.embeddings.models import load_model
from services.embeddings.routes import about, clusters, embeddings, neighbours
from services.embeddings.service import Service
from services.embeddings.settings import ServiceSettings
from services.embeddings.store import load_store


def create_app(settings: ServiceSettings) -> FastAPI:
    """Loads the model and the embeddings, and builds the application around them.

    Raises UserError when one of the two can't be loaded. The engine runs between start and end of the lifespan.
    """
    model = load_model(settings.model)
    store = None if settings.embeddings is None else load_store(settings.embeddings, model)
    metrics = make_metrics()
    service = Service(settings, model, store, Engine(model, settings, metrics), metrics, Bodies(settings.limits.max_held))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.engine.start()
        yield
        await service.engine.stop()

    app = FastAPI(
        title="swav-platform embeddings",
        description="An image in; its embedding, clusters and nearest stored samples out.",
        lifespan=lifespan,
        default_response_class=Json,
    )
    app.state.service = service
    app.add_middleware(Measured, metrics=metrics)
    errors.install(app)
    for part in (embeddings, clusters, neighbours, about):
        app.include_router(part.router)
    return app
