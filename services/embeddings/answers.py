"""Response schemas, for /docs and the tests.

Routes build plain dictionaries; responses are not validated again at run time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import orjson
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

LARGE = 8192  # numbers of an answer that is written in a thread


class Json(JSONResponse):
    """JSON of Python's types and of numpy arrays."""

    def render(self, content: Any) -> bytes:
        try:
            return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError:  # a file name with a lone surrogate is invalid in UTF-8: ASCII escapes it
            return json.dumps(content, allow_nan=False, separators=(",", ":"), default=np.ndarray.tolist).encode("ascii")


async def written(make: Callable[[], Any], count: int) -> Json:
    """The answer that `make` builds from `count` numbers; a large one does not hold up other requests."""
    return await asyncio.to_thread(lambda: Json(make())) if count > LARGE else Json(make())


def numbers(vector: np.ndarray) -> np.ndarray:
    """Rounds to seven decimals, the precision of float32 in a unit-length vector; this halves the bytes."""
    return np.round(vector.astype(np.float64), 7)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(_Answer):
    code: str
    message: str
    detail: dict[str, Any]


class ErrorAnswer(_Answer):
    error: ErrorBody


class ModelName(_Answer):
    name: str
    digest: str


class BadItem(_Answer):
    index: int
    name: str | None
    error: ErrorBody


class EmbeddingItem(_Answer):
    index: int
    name: str | None
    embedding: list[float]


class EmbeddingsAnswer(_Answer):
    model: ModelName
    kind: str
    dim: int
    items: list[EmbeddingItem | BadItem]


class OpenAIItem(_Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAIUsage(_Answer):
    prompt_tokens: int
    total_tokens: int


class OpenAIAnswer(_Answer):
    object: Literal["list"]
    data: list[OpenAIItem]
    model: str
    digest: str
    usage: OpenAIUsage
    id: str
    created: int


class CohereAnswer(_Answer):
    id: str
    embeddings: dict[str, list[list[float] | str]]
    texts: list[str]
    meta: dict[str, Any]
    response_type: Literal["embeddings_by_type"]
    model: ModelName


class Assignment(_Answer):
    cluster: int
    score: float
    probability: float


class ClustersItem(_Answer):
    index: int
    name: str | None
    clusters: list[Assignment]


class ClustersAnswer(_Answer):
    model: ModelName
    temperature: float
    items: list[ClustersItem | BadItem]


class ClusterSize(_Answer):
    cluster: int
    size: int


class ClusterList(_Answer):
    model: ModelName
    samples: int
    total: int
    limit: int
    offset: int
    clusters: list[ClusterSize]


class NearPrototype(_Answer):
    cluster: int
    score: float


class Sample(_Answer):
    """A stored sample. `score` is its cosine to the prototype (in a cluster) or to the query (as a neighbour)."""

    key: str
    shard: str
    sample: int
    cluster: int
    score: float
    label: str | None
    thumbnail: str | None


class ClusterAnswer(_Answer):
    model: ModelName
    cluster: int
    size: int | None
    norm: float
    nearest: list[NearPrototype]
    members: list[Sample]


class NeighborsItem(_Answer):
    index: int
    name: str | None
    neighbors: list[Sample]


class NeighborsAnswer(_Answer):
    model: ModelName
    items: list[NeighborsItem | BadItem]


class StoredNeighborsAnswer(_Answer):
    model: ModelName
    item: Sample
    neighbors: list[Sample]


class AddedItem(_Answer):
    """An image that was added to the set. `score` is its cosine to the prototype of `cluster`."""

    index: int
    name: str | None
    id: int
    key: str
    cluster: int
    score: float


class AddedAnswer(_Answer):
    model: ModelName
    items: list[AddedItem | BadItem]


class DeletedAnswer(_Answer):
    model: ModelName
    id: int


class ModelCard(_Answer):
    name: str
    digest: str
    runtime: str
    feature_dim: int
    projection_dim: int
    prototypes: int
    input_size: int
    temperature: float
    run: str | None
    run_id: str | None
    created: str | None
    samples: int | None


class ModelEntry(_Answer):
    """A model as OpenAI lists it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsAnswer(_Answer):
    object: Literal["list"]
    data: list[ModelEntry]
    models: list[ModelCard]


class Reloaded(_Answer):
    name: str
    digest: str
    result: Literal["unchanged", "swapped", "refused"]
    because: str | None = None


class ReloadAnswer(_Answer):
    models: list[Reloaded]


FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer, "description": text}
    for code, text in {
        400: "The connection closed before the whole body was received",
        404: "There is no such model",
        408: "The body came too slowly",
        413: "Too many bytes or items",
        415: "Unsupported content type",
        422: "Invalid parameter, or the only image of the request is bad",
        503: "Busy: retry after the number of seconds in Retry-After",
    }.items()
}
"""Error responses of the routes that accept images."""
