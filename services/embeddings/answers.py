"""The shapes of the answers: what /docs shows and what the tests hold the routes to.

The routes build plain dictionaries and are not slowed by validating them again.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict


class Json(JSONResponse):
    """JSON in ASCII: a name with a lone surrogate, which UTF-8 refuses, goes through escaped."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def numbers(vector: np.ndarray) -> list[float]:
    """Seven decimals: what float32 holds of a vector of unit length, in half the bytes."""
    return np.round(vector.astype(np.float64), 7).tolist()


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
    """A stored sample. `score` is a cosine: to the prototype in a cluster, to the query among neighbours."""

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


class ModelCard(_Answer):
    name: str
    digest: str
    feature_dim: int
    projection_dim: int
    prototypes: int
    input_size: int
    temperature: float
    run: str | None
    run_id: str | None
    created: str | None
    samples: int | None


class ModelsAnswer(_Answer):
    models: list[ModelCard]
