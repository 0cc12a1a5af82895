"""Stored samples that are nearest to an image or to another stored sample."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request

from services.embeddings.answers import FAILURES, ErrorAnswer, Json, NeighborsAnswer, StoredNeighborsAnswer
from services.embeddings.edge.access import caller_of, forbidden, require
from services.embeddings.edge.dialects import NEIGHBOURS
from services.embeddings.edge.settings import NeighbourSettings
from services.embeddings.encoding import describe, encode, stack
from services.embeddings.errors import ServiceError
from services.embeddings.inputs import asked, body_schema
from services.embeddings.state import chosen, current
from services.embeddings.store import Store

router = APIRouter(dependencies=[Depends(require("search"))])

K = Annotated[int, Query(ge=1, le=100, description="number of samples to return")]
Thumbnails = Annotated[
    bool | None, Query(description="include thumbnails as data URIs; by default if the key has the scope `images`")
]
ModelName = Annotated[str | None, Query(description="name or digest of a served model")]
NO_STORE: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorAnswer, "description": "The service was started without embeddings"}
}


@router.post(
    "/v1/neighbors", response_model=NeighborsAnswer, responses={**FAILURES, **NO_STORE}, openapi_extra=body_schema(NEIGHBOURS)
)
async def of_images(request: Request, query: Annotated[NeighbourSettings, Query()]) -> Json:
    """The k stored samples of highest cosine to each image, by exact search."""
    async with asked(request, NEIGHBOURS, query) as ask:
        state = chosen(request, ask.settings.model)
        store = state.stored()
        shown = _shown(request, ask.settings.thumbnails)
        results = await encode(state.engine, ask.items)
        queries = stack(results, lambda r: r.features, state.model.feature_dim)
        answers = await state.engine.search(_nearest, store, queries, ask.settings.k, shown)
        items = describe(ask.items, results, answers)
    return Json({"model": state.model_name(), "items": items})


def _shown(request: Request, thumbnails: bool | None) -> bool:
    """Raises ServiceError 403 for a key that asks for thumbnails and may not see them."""
    caller = caller_of(request)
    if thumbnails and not caller.may("images"):
        raise forbidden(caller, "images")
    return caller.may("images") if thumbnails is None else thumbnails


def _nearest(store: Store, queries: np.ndarray, k: int, thumbnails: bool) -> list[dict[str, Any]]:
    return [
        {"neighbors": [store.sample(int(row), score, thumbnail=thumbnails) for row, score in zip(rows, scores, strict=True)]}
        for rows, scores in store.nearest(queries, k)
    ]


@router.get("/v1/neighbors", response_model=StoredNeighborsAnswer, responses={404: {"model": ErrorAnswer}, **NO_STORE})
async def of_sample(
    request: Request, key: str, shard: str | None = None, k: K = 10, thumbnails: Thumbnails = None, model: ModelName = None
) -> Json:
    """The k stored samples nearest to the one with this key, which is itself left out."""
    state = current(request, model)
    found = await state.engine.search(_of_sample, state.stored(), key, shard, k, _shown(request, thumbnails))
    return Json({"model": state.model_name(), **found})


def _of_sample(store: Store, key: str, shard: str | None, k: int, thumbnails: bool) -> dict[str, Any]:
    row = _only_row(store, key, shard)
    rows, scores = store.nearest(store.vectors[row][None], k + 1)[0]
    others = [(int(r), s) for r, s in zip(rows, scores, strict=True) if r != row][:k]
    return {
        "item": store.sample(row, store.scores[row], thumbnail=thumbnails),
        "neighbors": [store.sample(r, s, thumbnail=thumbnails) for r, s in others],
    }


def _only_row(store: Store, key: str, shard: str | None) -> int:
    key = key.encode("utf-8", "replace").decode("utf-8")
    rows = store.rows(key, shard)
    if len(rows) == 0:
        place = "" if shard is None else f" in the shard {shard!r}"
        raise ServiceError(404, "no_such_sample", f"There is no sample with the key {key!r}{place}.")
    if len(rows) > 1:
        shards = [store.table["shard"][int(row)].as_py() for row in rows[:10]]
        message = f"{len(rows)} samples have the key {key!r}. Select one with the parameter `shard`."
        raise ServiceError(409, "ambiguous_key", message, {"shards": shards})
    return int(rows[0])
