"""Embeddings of images."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request

from services.embeddings.answers import FAILURES, EmbeddingsAnswer, Json, numbers
from services.embeddings.edge.access import require
from services.embeddings.encoding import describe, encode, stack
from services.embeddings.inputs import BODY, Items
from services.embeddings.state import current

router = APIRouter(dependencies=[Depends(require("embed"))])

Kind = Annotated[
    Literal["embedding", "projection"],
    Query(description="embedding: the encoder's features. projection: the head's output, for prototypes. Both have unit length."),
]


@router.post("/v1/embeddings", response_model=EmbeddingsAnswer, responses=FAILURES, openapi_extra=BODY)
async def embeddings(request: Request, items: Items, kind: Kind = "embedding") -> Json:
    """One vector per image, in the order of the request. A bad image does not fail the others."""
    state = current(request)
    results = await encode(state.engine, items)
    if kind == "embedding":
        vectors = stack(results, lambda r: r.features, state.model.feature_dim)
    else:
        vectors = stack(results, lambda r: r.projections, state.model.projection_dim)
    answers = [{"embedding": numbers(vector)} for vector in vectors]
    told = describe(items, results, answers)
    return Json({"model": state.model_name(), "kind": kind, "dim": vectors.shape[1], "items": told})
