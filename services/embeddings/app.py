"""The embeddings service as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from services.embeddings import errors
from services.embeddings.answers import Json
from services.embeddings.body import Bodies
from services.embeddings.edge.access import open_guard
from services.embeddings.edge.names import known_parameters
from services.embeddings.engine import Engine
from services.embeddings.explorer import page
from services.embeddings.explorer import routes as explorer
from services.embeddings.explorer.collection import collect
from services.embeddings.metrics import Measured, make_metrics
from services.embeddings.routes import about, clusters, embeddings, neighbours
from services.embeddings.settings import ServiceSettings
from services.embeddings.state import State
from services.embeddings.store import load_store
from swav_platform import __version__
from swav_platform.models.inference import load_for_inference


def create_app(settings: ServiceSettings) -> FastAPI:
    """Loads the model and the embeddings, and builds the application around them.

    Raises UserError if either, or the file of API keys, cannot be loaded. The engine runs for the length of the application's lifespan.
    """
    guard = open_guard(settings.keys)
    model = load_for_inference(settings.model)
    store = None if settings.embeddings is None else load_store(settings.embeddings, model)
    collection = None if store is None else collect(store, settings.embeddings)
    metrics = make_metrics()
    state = State(settings, model, store, Engine(model, settings, metrics), metrics, Bodies(settings.limits.max_held), collection)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await state.engine.start()
        yield
        await state.engine.stop()

    app = FastAPI(
        title="swav-platform embeddings",
        description="Embeddings, clusters and nearest stored samples of images.",
        version=__version__,
        lifespan=lifespan,
        default_response_class=Json,
        dependencies=[Depends(known_parameters)],
    )
    app.state.service = state
    app.state.guard = guard
    app.add_middleware(Measured, metrics=metrics)
    errors.install(app)
    for part in (embeddings, clusters, neighbours, about, explorer):
        app.include_router(part.router)
    page.install(app)
    return app
