"""Stored samples that are nearest to an image or to another stored sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request

from services.embeddings.answers import FAILURES, ErrorAnswer, Json, NeighborsAnswer, StoredNeighborsAnswer
from services.embeddings.edge.access import caller_of, forbidden, require
from services.embeddings.edge.dialects import NEIGHBOURS
from services.embeddings.edge.settings import NeighbourSettings, SampleSettings
from services.embeddings.encoding import describe, encode, stack
from services.embeddings.errors import ServiceError
from services.embeddings.inputs import Item, asked, body_schema
from services.embeddings.search.find import find, number, told
from services.embeddings.search.log import Item as Added
from services.embeddings.state import chosen, current
from services.embeddings.store import Store
from swav_platform.neighbours.search import Where

router = APIRouter(dependencies=[Depends(require("search"))])

NO_STORE: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorAnswer, "description": "The service was started without embeddings"}
}


@router.post(
    "/v1/neighbors", response_model=NeighborsAnswer, responses={**FAILURES, **NO_STORE}, openapi_extra=body_schema(NEIGHBOURS)
)
async def of_images(request: Request, query: Annotated[NeighbourSettings, Query()]) -> Json:
    """The k samples of highest cosine to each image or to a vector, of the set and of the items added to it."""
    async with asked(request, NEIGHBOURS, query) as ask:
        state = chosen(request, ask.settings.model)
        store = state.stored()
        shown = _shown(request, ask.settings.thumbnails)
        _check_vectors(ask.items, state.model.feature_dim)
        results = await encode(state.engine, ask.items)
        queries = stack(results, lambda r: r.features, state.model.feature_dim)
        answers = await state.engine.search(_nearest, store, queries, ask.settings, shown)
        items = describe(ask.items, results, answers)
    return Json({"model": state.model_name(), "items": items})


def _shown(request: Request, thumbnails: bool | None) -> bool:
    """Raises ServiceError 403 for a key that asks for thumbnails and may not see them."""
    caller = caller_of(request)
    if thumbnails and not caller.may("images"):
        raise forbidden(caller, "images")
    return caller.may("images") if thumbnails is None else thumbnails


def _check_vectors(items: Sequence[Item], dim: int) -> None:
    for item in items:
        if item.vector is not None and len(item.vector) != dim:
            message = f"`vector` has {len(item.vector)} numbers, and those of the model have {dim}."
            raise ServiceError(422, "invalid_request", message, {"where": "vector", "dim": dim})


def _nearest(store: Store, queries: np.ndarray, asked: NeighbourSettings, thumbnail: bool) -> list[dict[str, Any]]:
    where = Where(asked.cluster, asked.label, asked.shard, asked.key_prefix)
    found = find(store, queries, asked.k, asked.offset, where, thumbnail=thumbnail)
    return [{"neighbors": near} for near in found]


@router.get(
    "/v1/neighbors", response_model=StoredNeighborsAnswer, responses={404: {"model": ErrorAnswer}, 503: FAILURES[503], **NO_STORE}
)
async def of_sample(request: Request, query: Annotated[SampleSettings, Query()]) -> Json:
    """The k samples nearest to a stored sample or an added item, which is itself left out."""
    state = current(request, query.model)
    found = await state.engine.search(_of_sample, state.stored(), query, _shown(request, query.thumbnails))
    return Json({"model": state.model_name(), **found})


def _of_sample(store: Store, asked: SampleSettings, thumbnail: bool) -> dict[str, Any]:
    if (asked.key is None) == (asked.id is None):
        problem = "name the sample by either key or id"
        message = f"The request is invalid: query.key: {problem}."
        raise ServiceError(422, "invalid_request", message, {"problems": [{"where": "query.key", "problem": problem}]})
    if asked.key is not None:
        what, shard = _with_key(store, asked.key, asked.shard), None
    else:
        what, shard = _with_number(store, asked.id or 0), asked.shard
    if isinstance(what, Added):
        vector, own = what.vector, what.score
    else:
        vector, own = store.vector(what), float(store.scores[what])
    where = Where(asked.cluster, asked.label, shard, asked.key_prefix)
    itself = number(store, what)
    [near] = find(store, vector[None], asked.k, asked.offset, where, thumbnail=thumbnail, without=itself)
    return {"item": told(store, what, own, thumbnail=thumbnail), "neighbors": near}


def _with_number(store: Store, sample: int) -> int | Added:
    row = store.row_of(sample)
    if row is not None and not store.hidden[row]:
        return row
    if (item := store.items.get(sample)) is not None:
        return item
    raise ServiceError(404, "no_such_sample", f"There is no sample or item {sample}.")


def _with_key(store: Store, key: str, shard: str | None) -> int | Added:
    key = key.encode("utf-8", "replace").decode("utf-8")
    found: list[int | Added] = [int(row) for row in store.rows(key, shard)]
    found += [] if shard else store.items.with_key(key)
    if not found:
        place = "" if shard is None else f" in the shard {shard!r}"
        raise ServiceError(404, "no_such_sample", f"There is no sample with the key {key!r}{place}.")
    if len(found) > 1:
        shards = [told(store, what, 0.0, thumbnail=False)["shard"] for what in found[:10]]
        message = f"{len(found)} samples have the key {key!r}. Select one with the parameter `shard` or `id`."
        raise ServiceError(409, "ambiguous_key", message, {"shards": shards, "ids": [number(store, w) for w in found[:10]]})
    return found[0]
