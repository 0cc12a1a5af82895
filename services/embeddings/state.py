"""One version of a model with all that answers for it, which routes read from the request. Immutable, and replaced as a whole."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fastapi import Request

from services.embeddings.body import Bodies
from services.embeddings.engine import Engine
from services.embeddings.errors import ServiceError
from services.embeddings.explorer.collection import Collection
from services.embeddings.metrics import Metrics
from services.embeddings.settings import ServiceSettings
from services.embeddings.store import Store
from swav_platform.models.inference import InferenceModel


@dataclass(frozen=True)
class State:
    settings: ServiceSettings
    model: InferenceModel
    store: Store | None
    engine: Engine
    metrics: Metrics
    bodies: Bodies
    collection: Collection | None = None  # of the store, for the page
    name: str | None = None  # by which requests choose it; the package's own name if None

    def stored(self) -> Store:
        """The run's embeddings. Raises ServiceError 409 if the service was started without any."""
        if self.store is None:
            message = (
                "This service was started without embeddings, so it has no stored samples. "
                "Run `swav embed RUN --data PATTERN`, then restart the service with the result."
            )
            raise ServiceError(409, "no_embeddings", message)
        return self.store

    def check_clusters(self) -> None:
        """Raises ServiceError 409 if the model has no prototypes."""
        if not len(self.model.prototypes):
            message = (
                "This model has no clusters, because its method trains no prototypes. Request embeddings or neighbours, "
                "or serve a model of a method with prototypes."
            )
            raise ServiceError(409, "no_prototypes", message)

    def check_cluster(self, cluster: int) -> None:
        """Raises ServiceError 409 if the model has no prototypes, 404 if it has no cluster of this number."""
        self.check_clusters()
        known = len(self.model.prototypes)
        if not 0 <= cluster < known:
            message = f"There is no cluster {cluster}. The clusters of this model are 0 to {known - 1}."
            raise ServiceError(404, "no_such_cluster", message, {"clusters": known})

    def model_name(self) -> dict[str, str]:
        return {"name": self.name or self.model.name, "digest": self.model.digest}


def current(request: Request, name: str | None = None) -> State:
    """The model with this name or digest, else the first. Raises ServiceError 404 for an unknown name.

    Ask once, after the body was read: a model that is replaced meanwhile stays for requests in progress only.
    """
    state: State = request.app.state.service.pick(name)
    return state


def chosen(request: Request, name: str | None) -> State:
    """As `current`, for images: without a name, other models take their share of the requests."""
    state: State = request.app.state.service.pick(name, draw=random.random())
    return state


async def alone(request: Request) -> None:
    """A FastAPI dependency of routes that change something. Raises ServiceError 409 if other processes answer beside this one."""
    if not request.app.state.service.first.settings.alone:
        message = (
            "Several processes answer here, and a change would reach one of them. "
            "Change items and names through a service of one process; new models come with --poll."
        )
        raise ServiceError(409, "read_only", message)
