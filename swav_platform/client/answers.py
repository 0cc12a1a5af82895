"""Types of the service's answers."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Fault(TypedDict):
    code: str
    message: str
    detail: dict[str, Any]


class ModelName(TypedDict):
    name: str
    digest: str


class Item(TypedDict):
    """Of every list of items: `error` instead of the other keys for an image that was refused."""

    index: int
    name: str | None
    error: NotRequired[Fault]


class EmbeddingItem(Item):
    embedding: NotRequired[list[float]]


class Embeddings(TypedDict):
    model: ModelName
    kind: str
    dim: int
    items: list[EmbeddingItem]


class Assignment(TypedDict):
    cluster: int
    score: float
    probability: float


class ClustersItem(Item):
    clusters: NotRequired[list[Assignment]]


class Clusters(TypedDict):
    model: ModelName
    temperature: float
    items: list[ClustersItem]


class Sample(TypedDict):
    key: str
    shard: str
    sample: int
    cluster: int
    score: float
    label: str | None
    thumbnail: str | None


class NeighborsItem(Item):
    neighbors: NotRequired[list[Sample]]


class Neighbors(TypedDict):
    model: ModelName
    items: list[NeighborsItem]


class StoredNeighbors(TypedDict):
    model: ModelName
    item: Sample
    neighbors: list[Sample]


class ClusterSize(TypedDict):
    cluster: int
    size: int


class ClusterList(TypedDict):
    model: ModelName
    samples: int
    total: int
    limit: int
    offset: int
    clusters: list[ClusterSize]


class NearPrototype(TypedDict):
    cluster: int
    score: float


class Cluster(TypedDict):
    model: ModelName
    cluster: int
    size: int | None
    norm: float
    nearest: list[NearPrototype]
    members: list[Sample]


class AddedItem(Item):
    id: NotRequired[int]
    key: NotRequired[str]
    cluster: NotRequired[int]
    score: NotRequired[float]


class Added(TypedDict):
    model: ModelName
    items: list[AddedItem]


class Deleted(TypedDict):
    model: ModelName
    id: int


class ModelCard(TypedDict):
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


class ModelEntry(TypedDict):
    id: str
    object: str
    created: int
    owned_by: str


class Models(TypedDict):
    object: str
    data: list[ModelEntry]
    models: list[ModelCard]
