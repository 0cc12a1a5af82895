"""The embeddings service as an ASGI application."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from services.embeddings import errors
from services.embeddings.abandoned import Abandoned
from services.embeddings.admission import Admission
from services.embeddings.answers import Json
from services.embeddings.body import Bodies
from services.embeddings.edge import document, web
from services.embeddings.edge.access import open_guard
from services.embeddings.edge.fetch import Fetcher
from services.embeddings.edge.hosts import read_hosts
from services.embeddings.edge.names import known_parameters
from services.embeddings.engine import Engine, Rooms
from services.embeddings.explorer import page
from services.embeddings.explorer import routes as explorer
from services.embeddings.explorer.collection import collect
from services.embeddings.metrics import Measured, make_metrics
from services.embeddings.models.live import Models
from services.embeddings.models.sources import Loaded
from services.embeddings.routes import about, clusters, embeddings, items, neighbours
from services.embeddings.routes import models as reload
from services.embeddings.settings import ServiceSettings
from services.embeddings.state import State
from swav_platform import __version__


def create_app(settings: ServiceSettings) -> FastAPI:
    """Loads the model and the embeddings, and builds the application around them.

    Raises UserError if either, or the file of API keys, cannot be loaded. The engine runs for the length of the application's lifespan.
    """
    guard = open_guard(settings.keys)
    guard.origins = settings.origins
    metrics, limits = make_metrics(), settings.limits
    fetcher = Fetcher(read_hosts(settings.url_hosts), limits) if settings.url_hosts else None
    admission = Admission(limits.max_pending, limits.max_age, metrics.queued.set)
    bodies = Bodies(limits.max_held, admission.check)
    cores = len(os.sched_getaffinity(0))
    pools = [ThreadPoolExecutor(settings.decoders or cores, "decode"), ThreadPoolExecutor(cores, "search")]
    rooms = Rooms(settings, metrics, admission, *pools)

    def build(loaded: Loaded) -> State:
        collection = None if loaded.store is None else collect(loaded.store, loaded.embeddings)
        return State(settings, loaded.model, loaded.store, Engine(loaded.model, rooms), metrics, bodies, collection, loaded.name)

    models = Models(settings, build)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await models.start()
        yield
        await models.stop()
        if fetcher is not None:
            await fetcher.close()
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="swav-platform embeddings",
        description="Embeddings, clusters and nearest stored samples of images.",
        version=__version__,
        lifespan=lifespan,
        default_response_class=Json,
        dependencies=[Depends(known_parameters)],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = models
    app.state.guard = guard
    app.state.fetcher = fetcher
    app.add_middleware(Abandoned)
    app.add_middleware(Measured, metrics=metrics)
    errors.install(app)
    routers = [part.router for part in (embeddings, clusters, neighbours, items, about, reload, explorer)]
    for router in routers:
        app.include_router(router)
    document.install(app, routers, keys=guard.known is not None)
    page.install(app)
    web.install(app, settings)
    return app
