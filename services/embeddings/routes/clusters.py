"""Nearest prototypes of images, and the content of clusters."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request

from services.embeddings.answers import FAILURES, ClusterAnswer, ClusterList, ClustersAnswer, ErrorAnswer, Json
from services.embeddings.edge.access import caller_of, require
from services.embeddings.edge.dialects import CLUSTERS
from services.embeddings.edge.settings import ClusterSettings
from services.embeddings.encoding import describe, encode, stack
from services.embeddings.inputs import asked, body_schema
from services.embeddings.search.find import told
from services.embeddings.search.members import Members
from services.embeddings.state import State, chosen, current
from swav_platform.models.inference import Assignment, highest

router = APIRouter()

SEARCH = [Depends(require("search"))]


@router.post(
    "/v1/clusters",
    response_model=ClustersAnswer,
    responses={**FAILURES, 409: {"model": ErrorAnswer}},
    openapi_extra=body_schema(CLUSTERS),
    dependencies=[Depends(require("embed"))],
)
async def assign(request: Request, query: Annotated[ClusterSettings, Query()]) -> Json:
    """The `top` prototypes nearest to each image: cosine (score), and softmax of cosine / temperature over all prototypes."""
    async with asked(request, CLUSTERS, query) as ask:
        state = chosen(request, ask.settings.model)
        state.check_clusters()
        model = state.model
        results = await encode(state.engine, ask.items)
        projections = stack(results, lambda r: r.projections, model.projection_dim)
        assignment = await state.engine.search(model.assign, projections, ask.settings.top)
        described = describe(ask.items, results, _answers(assignment))
    return Json({"model": state.model_name(), "temperature": model.temperature, "items": described})


def _answers(assignment: Assignment) -> list[dict[str, Any]]:
    return [
        {
            "clusters": [
                {"cluster": int(cluster), "score": round(float(score), 7), "probability": round(float(probability), 7)}
                for cluster, score, probability in zip(*image, strict=True)
            ]
        }
        for image in zip(*assignment, strict=True)
    ]


@router.get("/v1/clusters", response_model=ClusterList, responses={409: {"model": ErrorAnswer}}, dependencies=SEARCH)
async def sizes(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0)] = 0
) -> Json:
    """All clusters, including empty ones, largest first."""
    state = current(request)
    state.check_clusters()
    store = state.stored()
    found = Members(store).sizes
    order = np.argsort(-found, kind="stable")[offset : offset + limit]
    return Json(
        {
            "model": state.model_name(),
            "samples": store.samples,
            "total": len(found),
            "limit": limit,
            "offset": offset,
            "clusters": [{"cluster": int(c), "size": int(found[c])} for c in order],
        }
    )


@router.get(
    "/v1/clusters/{cluster}",
    response_model=ClusterAnswer,
    responses={404: {"model": ErrorAnswer}, 409: {"model": ErrorAnswer}, 503: FAILURES[503]},
    dependencies=SEARCH,
)
async def cluster(request: Request, cluster: int, limit: Annotated[int, Query(ge=0, le=200)] = 20) -> Json:
    """One cluster: its size, the nearest other prototypes, and the members nearest to its prototype.

    Without stored embeddings the size is null and the list of members is empty. Thumbnails need the scope `images`.
    """
    state = current(request)
    state.check_cluster(cluster)
    return Json(await state.engine.search(_cluster, state, cluster, limit, caller_of(request).may("images")))


def _cluster(state: State, cluster: int, limit: int, thumbnails: bool) -> dict[str, Any]:
    own = state.model.prototypes[cluster]
    places, scores = highest(state.model.scores(own[None])[0], 6)
    nearest = [{"cluster": int(c), "score": round(float(s), 7)} for c, s in zip(places, scores, strict=True) if c != cluster]
    store = state.store
    members = None if store is None else Members(store)
    best = [] if members is None else members.best(cluster, limit)
    return {
        "model": state.model_name(),
        "cluster": cluster,
        "size": None if members is None else int(members.sizes[cluster]),
        "norm": round(float(state.model.norms[cluster]), 7),
        "nearest": nearest[:5],
        "members": [told(store, what, score, thumbnail=thumbnails) for what, score in best] if store else [],
    }
