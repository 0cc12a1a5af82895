"""Image in, vector out."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from services.embeddings.answers import EmbeddingsAnswer, Json, numbers
from services.embeddings.encoding import describe, encode, stack
from services.embeddings.inputs import BODY, Items
from services.embeddings.routes import FAILURES
from services.embeddings.service import current

router = APIRouter()

Kind = Annotated[
    Literal["embedding", "projection"],
    Query(description="embedding: the encoder's features; projection: the head's output, compared with prototypes. Unit length."),
]


@router.post("/v1/embeddings", response_model=EmbeddingsAnswer, responses=FAILURES, openapi_extra=BODY)
async def embeddings(request: Request, items: Items, kind: Kind = "embedding") -> Json:
    """Vectors of the images of the request, in their order. A bad image does not fail the others."""
    service = current(request)
    results = await encode(service.engine, items)
    if kind == "embedding":
        vectors = stack(results, lambda r: r.features, service.model.feature_dim)
    else:
        vectors = stack(results, lambda r: r.projection, service.model.projection_dim)
    answers = [{"embedding": numbers(vector)} for vector in vectors]
    told = describe(items, results, answers)
    return Json({"model": service.model_name(), "kind": kind, "dim": vectors.shape[1], "items": told})
