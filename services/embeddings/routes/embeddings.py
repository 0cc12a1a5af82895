"""Embeddings of images."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request

from services.embeddings.answers import FAILURES, CohereAnswer, EmbeddingsAnswer, Json, OpenAIAnswer, numbers, written
from services.embeddings.edge.access import require
from services.embeddings.edge.dialects import COHERE, EMBEDDINGS, OPENAI, cohere_answer, openai_answer, shortened
from services.embeddings.edge.settings import CohereSettings, EmbeddingSettings, OpenAISettings
from services.embeddings.encoding import check_all_good, describe, encode, stack
from services.embeddings.errors import ServiceError
from services.embeddings.inputs import Asked, asked, body_schema
from services.embeddings.state import State, chosen

router = APIRouter(dependencies=[Depends(require("embed"))])


@router.post(
    "/v1/embeddings",
    response_model=EmbeddingsAnswer | OpenAIAnswer,
    responses=FAILURES,
    openapi_extra=body_schema(EMBEDDINGS),
)
async def embeddings(request: Request, query: Annotated[EmbeddingSettings, Query()]) -> Json:
    """One vector per image, in the order of the request. A bad image does not fail the others.

    A body with `input` is OpenAI's or infinity's, and so is the answer; there, a bad image fails the request.
    """
    async with asked(request, EMBEDDINGS, query) as ask:
        state = chosen(request, ask.settings.model)
        if isinstance(ask.settings, OpenAISettings):
            return await _openai(state, ask, ask.settings)
        results = await encode(state.engine, ask.items)
        if ask.settings.kind == "embedding":
            vectors = stack(results, lambda r: r.features, state.model.feature_dim)
        else:
            vectors = stack(results, lambda r: r.projections, state.model.projection_dim)
        kind, dim = ask.settings.kind, vectors.shape[1]

        def told() -> dict[str, Any]:
            items = describe(ask.items, results, [{"embedding": numbers(vector)} for vector in vectors])
            return {"model": state.model_name(), "kind": kind, "dim": dim, "items": items}

        return await written(told, vectors.size)


@router.post("/embeddings", response_model=OpenAIAnswer, responses=FAILURES, openapi_extra=body_schema((OPENAI,)))
async def infinity(request: Request) -> Json:
    """The same for clients whose base URL has no `/v1`, such as infinity's."""
    async with asked(request, (OPENAI,), None) as ask:
        state = chosen(request, ask.settings.model)
        return await _openai(state, ask, ask.settings)


async def _openai(state: State, ask: Asked, settings: OpenAISettings) -> Json:
    vectors = await _vectors(state, ask, settings.kind, settings.dimensions, "dimensions")
    return await written(lambda: openai_answer(vectors, state.model_name(), settings), vectors.size)


@router.post("/v2/embed", response_model=CohereAnswer, responses=FAILURES, openapi_extra=body_schema((COHERE,)))
async def cohere(request: Request) -> Json:
    """Embeddings by type, as Cohere's API answers. A bad image fails the request."""
    async with asked(request, (COHERE,), None) as ask:
        state = chosen(request, ask.settings.model)
        settings: CohereSettings = ask.settings
        vectors = await _vectors(state, ask, "embedding", settings.output_dimension, "output_dimension")
        return await written(lambda: cohere_answer(vectors, state.model_name(), settings), vectors.size)


async def _vectors(state: State, ask: Asked, kind: str, dimensions: int | None, name: str) -> np.ndarray:
    """Vectors of all images: float32 [n, dimensions]. Raises ServiceError for a bad image, or too many dimensions."""
    dim = state.model.feature_dim if kind == "embedding" else state.model.projection_dim
    if dimensions is not None and dimensions > dim:
        message = f"`{name}` is {dimensions}, but the vectors of {state.model.name} have {dim} numbers. Ask for at most that."
        raise ServiceError(422, "invalid_request", message, {"limit": dim})
    results = await encode(state.engine, ask.items)
    check_all_good(results)
    return shortened(stack(results, lambda r: r.features if kind == "embedding" else r.projections, dim), dimensions)
