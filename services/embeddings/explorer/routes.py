"""What the page asks. These routes are the page's own; the resources under /v1 are the API for programs."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from services.embeddings.answers import Json
from services.embeddings.edge.access import caller_of, require
from services.embeddings.errors import ServiceError
from services.embeddings.explorer import lists
from services.embeddings.explorer.collection import Collection, found
from services.embeddings.explorer.notes import LONGEST, listed
from services.embeddings.explorer.overview import Order
from services.embeddings.explorer.run import record
from services.embeddings.explorer.sent import MOST as SAMPLES
from services.embeddings.explorer.sent import sent
from services.embeddings.search.find import find, number
from services.embeddings.search.log import Item
from services.embeddings.search.members import Members
from services.embeddings.state import State, alone, current
from swav_platform.models.inference import highest
from swav_platform.neighbours.search import ANY

router = APIRouter(prefix="/v1/explorer", include_in_schema=False, dependencies=[Depends(require("search"))])
ADMIN = [Depends(require("search", "admin")), Depends(alone)]

MOST = 200  # samples of a request
PATIENCE = 1.0  # seconds that a request waits for the map
Limit = Annotated[int, Query(ge=1, le=MOST)]
Offset = Annotated[int, Query(ge=0)]
SampleNumber = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Name(_Body):
    name: Annotated[str, Field(max_length=LONGEST)] | None


class Chosen(_Body):
    samples: Annotated[list[SampleNumber], Field(max_length=SAMPLES)]


class Exclusion(_Body):
    samples: Annotated[list[SampleNumber], Field(max_length=10_000)]
    excluded: bool


def collection(request: Request) -> Collection:
    state = current(request)
    state.stored()
    assert state.collection is not None
    return state.collection


def _shows(request: Request) -> bool:
    return caller_of(request).may("images")


@router.get("")
async def facts(request: Request) -> Json:
    """What there is to show."""
    state, caller = current(request), caller_of(request)
    held = state.collection
    return Json(
        {
            "model": state.model_name(),
            "clusters": len(state.model.prototypes),
            "samples": None if held is None else held.store.samples,
            "excluded": 0 if held is None else held.excluded,
            "thumbnails": held is not None and "thumbnail" in held.store.table.column_names and caller.may("images"),
            "map": held is not None,
            "names": {} if held is None else {str(cluster): name for cluster, name in held.notes.names.items()},
            "writable": held is not None and held.notes.writable and state.settings.alone and caller.may("admin"),
        }
    )


@router.get("/clusters")
async def clusters(
    request: Request,
    order: Order = "size",
    search: str = "",
    limit: Limit = 48,
    offset: Offset = 0,
    exemplars: Annotated[int, Query(ge=0, le=24)] = 8,
) -> Json:
    """A page of clusters with their best samples."""
    state = current(request)
    return Json(await state.engine.search(_clusters, state, order, search, limit, offset, exemplars, _shows(request)))


def _clusters(
    state: State, order: Order, search: str, limit: int, offset: int, exemplars: int, thumbnail: bool
) -> dict[str, Any]:
    held = state.collection
    members = None if held is None else Members(held.store)
    if held is None or members is None:
        numbers: list[int] = found({}, search, range(len(state.model.prototypes)))
    else:
        numbers = found(held.notes.names, search, held.overview.order(order, members.sizes).tolist())
    shown = [_summary(held, members, c, exemplars, thumbnail) for c in numbers[offset : offset + limit]]
    return {"total": len(numbers), "limit": limit, "offset": offset, "clusters": shown}


def _summary(held: Collection | None, members: Members | None, cluster: int, exemplars: int, thumbnail: bool) -> dict[str, Any]:
    if held is None or members is None:
        return {"cluster": cluster, "name": None, "size": None, "exemplars": []}
    return {
        "cluster": cluster,
        "name": held.notes.names.get(cluster),
        "size": int(members.sizes[cluster]),
        **{name: _number(getattr(held.overview, name)[cluster]) for name in ("tightness", "spread", "entropy")},
        "exemplars": held.exemplars(members, cluster, exemplars, thumbnail=thumbnail),
    }


def _number(value: float) -> float | None:
    return round(float(value), 5) if math.isfinite(value) else None


@router.get("/clusters/{cluster}")
async def cluster(request: Request, cluster: int, limit: Limit = 120) -> Json:
    """One cluster: its best samples and the nearest clusters with theirs."""
    state = current(request)
    state.check_cluster(cluster)
    return Json(await state.engine.search(_cluster, state, cluster, limit, _shows(request)))


def _cluster(state: State, cluster: int, limit: int, thumbnail: bool) -> dict[str, Any]:
    held = state.collection
    members = None if held is None else Members(held.store)
    summary = _summary(held, members, cluster, limit, thumbnail)
    places, scores = highest(state.model.scores(state.model.prototypes[cluster][None])[0], 7)
    near = [(int(c), float(s)) for c, s in zip(places, scores, strict=True) if c != cluster][:6]
    nearest = [{**_summary(held, members, c, 4, thumbnail), "score": _number(score)} for c, score in near]
    return {**summary, "members": summary.pop("exemplars"), "nearest": nearest}


@router.put("/clusters/{cluster}/name", dependencies=ADMIN)
async def rename(request: Request, cluster: int) -> Json:
    """Names a cluster; null takes the name away. Names are stored beside the set."""
    body = await sent(request, Name)
    held = collection(request)
    current(request).check_cluster(cluster)
    await current(request).engine.search(held.notes.rename, cluster, body.name)
    return Json({"cluster": cluster, "name": held.notes.names.get(cluster)})


@router.get("/items")
async def items(request: Request, samples: Annotated[str, Query(pattern=r"^\d{1,18}(,\d{1,18})*$")]) -> Json:
    """Samples by number, in the order of the request; unknown ones are left out."""
    held = collection(request)
    wanted = [int(part) for part in samples.split(",")][:MOST]
    thumbnail = _shows(request)
    return Json({"items": await current(request).engine.search(_items, held, wanted, thumbnail)})


def _items(held: Collection, samples: list[int], thumbnail: bool) -> list[dict[str, Any]]:
    return [held.item(what, None, thumbnail=thumbnail) for what in held.find(samples)]


@router.post("/list")
async def as_list(request: Request) -> Json:
    """The samples as lines of a list that `swav index` takes."""
    body = await sent(request, Chosen)
    held = collection(request)
    lines = await current(request).engine.search(lambda: listed(held.lines(held.find(body.samples))).splitlines())
    return Json({"lines": lines})


@router.get("/neighbors")
async def neighbours(request: Request, sample: SampleNumber, k: Limit = 48) -> Json:
    """The samples nearest to one of them."""
    held, thumbnail = collection(request), _shows(request)
    found = held.find([sample])
    if not found:
        raise ServiceError(404, "no_such_sample", f"There is no sample {sample}.")
    return Json(await current(request).engine.search(_neighbours, held, found[0], k, thumbnail))


def _neighbours(held: Collection, what: int | Item, k: int, thumbnail: bool) -> dict[str, Any]:
    vector = what.vector if isinstance(what, Item) else held.store.vector(what)
    [near] = find(held.store, vector[None], k, 0, ANY, thumbnail=thumbnail, without=number(held.store, what))
    return {
        "item": held.item(what, None, thumbnail=thumbnail),
        "neighbors": [{**neighbour, "excluded": False} for neighbour in near],
    }


@router.get("/map")
async def plane(request: Request) -> Response:
    """The points of the map; plane.py gives the format. Status 202 while it is computed."""
    held = collection(request)
    found = await asyncio.to_thread(held.plane.get, PATIENCE)
    if found is None:
        return Json({"state": "computing"}, status_code=202)
    return Response(await current(request).engine.search(held.map, found), media_type="application/octet-stream")


@router.get("/duplicates")
async def duplicates(request: Request, limit: Limit = 24, offset: Offset = 0) -> Json:
    """Groups of near-duplicates; the first sample of each is the one to keep."""
    return Json(await current(request).engine.search(lists.groups, collection(request), limit, offset, _shows(request)))


@router.get("/outliers")
async def outliers(request: Request, limit: Limit = 24, offset: Offset = 0) -> Json:
    """Samples unlike all others, the farthest first."""
    return Json(await current(request).engine.search(lists.outliers, collection(request), limit, offset, _shows(request)))


@router.get("/exclusions")
async def exclusions(request: Request) -> PlainTextResponse:
    """The exclusion list of the set, for `swav index --exclude`."""
    return PlainTextResponse(listed(collection(request).notes.lines))


@router.post("/exclusions", dependencies=ADMIN)
async def exclude(request: Request) -> Json:
    """Excludes samples, or takes them back. They disappear from neighbours, clusters and the map at once."""
    body = await sent(request, Exclusion)
    held = collection(request)
    await current(request).engine.search(held.exclude, body.samples, body.excluded)
    return Json({"excluded": held.excluded})


@router.get("/run")
async def run(request: Request) -> Json:
    """The record of the run that the model came from."""
    return Json(await current(request).engine.search(record, Path(current(request).settings.model)))
