"""The client's types are those of the service's answers."""

from __future__ import annotations

from typing import Any

import pytest

from services.embeddings import answers as service
from swav_platform.client import answers as client

PAIRS = {
    client.Embeddings: service.EmbeddingsAnswer,
    client.Clusters: service.ClustersAnswer,
    client.Neighbors: service.NeighborsAnswer,
    client.StoredNeighbors: service.StoredNeighborsAnswer,
    client.ClusterList: service.ClusterList,
    client.Cluster: service.ClusterAnswer,
    client.Added: service.AddedAnswer,
    client.Deleted: service.DeletedAnswer,
    client.Models: service.ModelsAnswer,
    client.Fault: service.ErrorBody,
    client.ModelName: service.ModelName,
    client.Assignment: service.Assignment,
    client.Sample: service.Sample,
    client.ClusterSize: service.ClusterSize,
    client.NearPrototype: service.NearPrototype,
    client.ModelCard: service.ModelCard,
    client.ModelEntry: service.ModelEntry,
}
ITEMS = {
    client.EmbeddingItem: service.EmbeddingItem,
    client.ClustersItem: service.ClustersItem,
    client.NeighborsItem: service.NeighborsItem,
    client.AddedItem: service.AddedItem,
}


@pytest.mark.parametrize(("typed", "model"), [*PAIRS.items(), *ITEMS.items()])
def test_fields(typed: Any, model: Any) -> None:
    extra = {"error"} if typed in ITEMS else set()
    assert typed.__required_keys__ | typed.__optional_keys__ == set(model.model_fields) | extra
