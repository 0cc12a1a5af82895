"""Which stored samples look like an image, or like another stored sample."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request

from services.embeddings.answers import ErrorAnswer, Json, NeighborsAnswer, StoredNeighborsAnswer
from services.embeddings.encoding import describe, encode, stack
from services.embeddings.errors import ServiceError
from services.embeddings.inputs import BODY, Items
from services.embeddings.routes import FAILURES
from services.embeddings.service import current
from services.embeddings.store import Store

router = APIRouter()

K = Annotated[int, Query(ge=1, le=100, description="samples to answer")]
Thumbnails = Annotated[bool, Query(description="with small pictures, as data URIs")]
NO_STORE: dict[int | str, dict[str, Any]] = {409: {"model": ErrorAnswer, "description": "Started without embeddings"}}


@router.post("/v1/neighbors", response_model=NeighborsAnswer, responses={**FAILURES, **NO_STORE}, openapi_extra=BODY)
async def of_images(request: Request, items: Items, k: K = 10, thumbnails: Thumbnails = True) -> Json:
    """The k stored samples of highest cosine to each image, by exact search."""
    service = current(request)
    store = service.stored()
    results = await encode(service.engine, items)
    queries = stack(results, lambda r: r.features, service.model.feature_dim)
    answers = await asyncio.to_thread(_nearest, store, queries, k, thumbnails)
    return Json({"model": service.model_name(), "items": describe(items, results, answers)})


def _nearest(store: Store, queries: np.ndarray, k: int, thumbnails: bool) -> list[dict[str, Any]]:
    return [
        {"neighbors": [store.sample(int(row), score, thumbnail=thumbnails) for row, score in zip(rows, scores, strict=True)]}
        for rows, scores in store.nearest(queries, k)
    ]


@router.get("/v1/neighbors", response_model=StoredNeighborsAnswer, responses={404: {"model": ErrorAnswer}, **NO_STORE})
async def of_sample(request: Request, key: str, shard: str | None = None, k: K = 10, thumbnails: Thumbnails = True) -> Json:
    """The k stored samples nearest to the stored one with this key; itself is left out."""
    service = current(request)
    found = await asyncio.to_thread(_of_sample, service.stored(), key, shard, k, thumbnails)
    return Json({"model": service.model_name(), **found})


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
        message = f"{len(rows)} samples have the key {key!r}; name one of them with &shard=."
        raise ServiceError(409, "ambiguous_key", message, {"shards": shards})
    return int(rows[0])
