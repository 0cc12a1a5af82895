"""Adds images to the set that is served, and deletes them and stored samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request

from services.embeddings.answers import FAILURES, AddedAnswer, DeletedAnswer, ErrorAnswer, Json
from services.embeddings.edge.access import require
from services.embeddings.edge.dialects import ITEMS
from services.embeddings.edge.settings import ItemSettings
from services.embeddings.encoding import Results, describe, encode
from services.embeddings.errors import ServiceError
from services.embeddings.inputs import Item as Sent
from services.embeddings.inputs import asked, body_schema
from services.embeddings.search.log import Item, Taken
from services.embeddings.state import State, alone, current
from services.embeddings.store import Store
from swav_platform.config import ImagePolicy
from swav_platform.errors import UserError
from swav_platform.images.decoding.decode import thumbnail
from swav_platform.models.inference import Encoded

router = APIRouter(dependencies=[Depends(require("admin")), Depends(alone)])

T = TypeVar("T")
Id = Annotated[int, Path(ge=0, le=2**63 - 1, description="id of an added item, or number of a stored sample")]
ModelName = Annotated[str | None, Query(description="name or digest of a served model")]
WRITES: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorAnswer, "description": "There are no embeddings, or this process may not write beside them"},
    503: {"model": ErrorAnswer, "description": "Busy, or the disk refuses"},
}


@router.post("/v1/items", response_model=AddedAnswer, responses={**FAILURES, **WRITES}, openapi_extra=body_schema(ITEMS))
async def add(request: Request, query: Annotated[ItemSettings, Query()]) -> Json:
    """Adds images to the set. The answer comes when they are on the disk; from then on they are found as neighbours."""
    async with asked(request, ITEMS, query) as ask:
        state = current(request, ask.settings.model)
        store = state.stored()
        keys = _keys(ask.items, ask.settings.key)
        results = await encode(state.engine, ask.items)
        answers = await state.engine.search(_add, state, store, ask.items, keys, results, ask.settings)
        items = describe(ask.items, results, answers)
    return Json({"model": state.model_name(), "items": items})


@router.delete("/v1/items/{item}", response_model=DeletedAnswer, responses={404: {"model": ErrorAnswer}, **WRITES})
async def delete(request: Request, item: Id, model: ModelName = None) -> Json:
    """Deletes an added item or a stored sample, for good. The answer comes when that is on the disk."""
    state = current(request, model)
    if not await state.engine.search(_delete, state.stored(), item):
        raise ServiceError(404, "no_such_sample", f"There is no sample or item {item}.")
    return Json({"model": state.model_name(), "id": item})


def _keys(sent: list[Sent], key: str | None) -> list[str]:
    """The key of each image. Raises ServiceError for an image without one."""
    if key is not None and len(sent) > 1:
        raise ServiceError(422, "invalid_request", "`key` is for one image. Give several images their keys as names.")
    keys = [key or item.name or "" for item in sent]
    for place, found in enumerate(keys):
        if not 0 < len(found) <= 1024:
            message = f"Image {place} needs a key of 1 to 1,024 characters: send `key`, or a name with the image."
            raise ServiceError(422, "invalid_request", message, {"where": f"images[{place}]"})
    return keys


def _add(
    state: State, store: Store, sent: list[Sent], keys: list[str], results: Results, settings: ItemSettings
) -> list[dict[str, Any]]:
    limits = state.settings.limits
    policy = ImagePolicy(max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)
    made = []
    for image, key, result in zip(sent, keys, results, strict=True):
        if isinstance(result, Encoded):
            cluster, score = _cluster(state, result.projections)
            picture = thumbnail(image.data, policy) if settings.thumbnail else None
            made.append(Item(0, key, settings.label, cluster, score, picture, result.features))
    ids = _stored(lambda: store.items.add(made)) if made else []
    return [
        {"id": number, "key": item.key, "cluster": item.cluster, "score": round(item.score, 7)}
        for number, item in zip(ids, made, strict=True)
    ]


def _cluster(state: State, projection: np.ndarray) -> tuple[int, float]:
    """The nearest prototype and its cosine; -1 and -1 without prototypes."""
    if not len(state.model.prototypes):
        return -1, -1.0
    found = state.model.assign(projection[None], 1)
    return int(found.clusters[0, 0]), float(found.scores[0, 0])


def _delete(store: Store, item: int) -> bool:
    row = store.row_of(item)
    if row is None and store.items.known(item) is None:
        return False
    done = _stored(lambda: store.items.delete(item))
    if row is not None:
        store.lose(row)
    return done


def _stored(write: Callable[[], T]) -> T:
    """Raises ServiceError for a write that failed."""
    try:
        return write()
    except Taken:
        message = "Another process adds to this set and deletes from it. Send this to that service, or stop it."
        raise ServiceError(409, "read_only", message) from None
    except OSError as error:
        message = f"Nothing was changed, because the disk refuses ({error.strerror or error}). Retry when that is mended."
        raise ServiceError(503, "not_stored", message) from error
    except UserError as error:
        raise ServiceError(503, "not_stored", f"Nothing was changed. {error}") from error
