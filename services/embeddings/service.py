"""What the routes share."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from services.embeddings.body import Bodies
from services.embeddings.engine import Engine
from services.embeddings.errors import ServiceError
from services.embeddings.metrics import Metrics
from services.embeddings.models import ServedModel
from services.embeddings.settings import ServiceSettings
from services.embeddings.store import Store


@dataclass(frozen=True)
class Service:
    settings: ServiceSettings
    model: ServedModel
    store: Store | None
    engine: Engine
    metrics: Metrics
    bodies: Bodies

    def stored(self) -> Store:
        """The run's embeddings; ServiceError 409 when the service was started without any."""
        if self.store is None:
            message = (
                "This service was started without embeddings, so it knows no samples. "
                "Run `swav embed RUN --data PATTERN` and restart the service with what it writes."
            )
            raise ServiceError(409, "no_embeddings", message)
        return self.store

    def check_clusters(self) -> None:
        """ServiceError 409 when the model was trained by a method without prototypes."""
        if not len(self.model.prototypes):
            message = (
                "This model was trained by a method without prototypes, so it has no clusters. Ask it for embeddings and neighbours, "
                "or serve a model of a method with prototypes."
            )
            raise ServiceError(409, "no_prototypes", message)

    def model_name(self) -> dict[str, str]:
        return {"name": self.model.name, "digest": self.model.digest}


def current(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
