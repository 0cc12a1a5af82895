"""Which prototypes an image belongs to, and what lies in a cluster."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request

from services.embeddings.answers import ClusterAnswer, ClusterList, ClustersAnswer, ErrorAnswer, Json
from services.embeddings.encoding import describe, encode, stack
from services.embeddings.errors import ServiceError
from services.embeddings.inputs import BODY, Items
from services.embeddings.models import ServedModel
from services.embeddings.routes import FAILURES
from services.embeddings.service import Service, current
from services.embeddings.store import best

router = APIRouter()


@router.post(
    "/v1/clusters", response_model=ClustersAnswer, responses={**FAILURES, 409: {"model": ErrorAnswer}}, openapi_extra=BODY
)
async def assign(request: Request, items: Items, top: Annotated[int, Query(ge=1, le=20)] = 5) -> Json:
    """The `top` prototypes nearest to each image: cosine, and softmax of cosine / temperature over all prototypes."""
    service = current(request)
    service.check_clusters()
    model = service.model
    results = await encode(service.engine, items)
    projections = stack(results, lambda r: r.projection, model.projection_dim)
    answers = await asyncio.to_thread(_assignments, model, projections, top)
    told = describe(items, results, answers)
    return Json({"model": service.model_name(), "temperature": model.temperature, "items": told})


def _assignments(model: ServedModel, projections: np.ndarray, top: int) -> list[dict[str, Any]]:
    answers = []
    for scores in model.scores(projections):
        logits = scores.astype(np.float64) / model.temperature
        masses = np.exp(logits - logits.max())
        probabilities = masses / masses.sum()
        places, _ = best(scores, top)
        answers.append(
            {
                "clusters": [
                    {"cluster": int(c), "score": round(float(scores[c]), 7), "probability": round(float(probabilities[c]), 7)}
                    for c in places
                ]
            }
        )
    return answers


@router.get("/v1/clusters", response_model=ClusterList, responses={409: {"model": ErrorAnswer}})
async def sizes(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0)] = 0
) -> Json:
    """All clusters, the largest first, those without samples too."""
    service = current(request)
    service.check_clusters()
    store = service.stored()
    order = np.argsort(-store.sizes, kind="stable")[offset : offset + limit]
    return Json(
        {
            "model": service.model_name(),
            "samples": store.samples,
            "total": len(store.sizes),
            "limit": limit,
            "offset": offset,
            "clusters": [{"cluster": int(c), "size": int(store.sizes[c])} for c in order],
        }
    )


@router.get(
    "/v1/clusters/{cluster}", response_model=ClusterAnswer, responses={404: {"model": ErrorAnswer}, 409: {"model": ErrorAnswer}}
)
async def cluster(request: Request, cluster: int, limit: Annotated[int, Query(ge=0, le=200)] = 20) -> Json:
    """One cluster: its size, the prototypes nearest to its own, and the members nearest to it.

    Without embeddings the size is null and there are no members.
    """
    service = current(request)
    service.check_clusters()
    known = len(service.model.prototypes)
    if not 0 <= cluster < known:
        message = f"There is no cluster {cluster}; this model's are 0 to {known - 1}."
        raise ServiceError(404, "no_such_cluster", message, {"clusters": known})
    return Json(await asyncio.to_thread(_cluster, service, cluster, limit))


def _cluster(service: Service, cluster: int, limit: int) -> dict[str, Any]:
    own = service.model.prototypes[cluster]
    places, scores = best(service.model.scores(own[None])[0], 6)
    nearest = [{"cluster": int(c), "score": round(float(s), 7)} for c, s in zip(places, scores, strict=True) if c != cluster]
    store = service.store
    members = [] if store is None else [store.sample(int(row), store.scores[row]) for row in store.members(cluster, limit)]
    return {
        "model": service.model_name(),
        "cluster": cluster,
        "size": None if store is None else int(store.sizes[cluster]),
        "norm": round(float(service.model.norms[cluster]), 7),
        "nearest": nearest[:5],
        "members": members,
    }
