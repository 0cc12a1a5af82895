"""Clusters of images, and what lies in a cluster."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from services.embeddings.answers import ClusterAnswer, ClusterList, ClustersAnswer, ErrorAnswer
from services.embeddings.app import create_app
from services.embeddings.settings import ServiceSettings
from swav_platform.models.package import load_package

Truth = tuple[np.ndarray, np.ndarray]


def scores_of(package: Path, truth: Truth) -> np.ndarray:
    return truth[1] @ load_package(package).prototypes.numpy().T


def test_assignments_are_softmax_of_cosines(service: TestClient, package: Path, pictures: list[bytes], truth: Truth) -> None:
    response = service.post("/v1/clusters?top=4", files=[("images", ("x", picture)) for picture in pictures[:5]])
    answer = ClustersAnswer.model_validate(response.json())
    scores = scores_of(package, truth)[:5]
    probabilities = np.exp(scores / 0.1) / np.exp(scores / 0.1).sum(1, keepdims=True)
    assert answer.temperature == 0.1
    for item, s, p in zip(answer.items, scores, probabilities, strict=True):
        assert [c.cluster for c in item.clusters] == list(np.argsort(-s)[:4])
        np.testing.assert_allclose([c.score for c in item.clusters], np.sort(s)[::-1][:4], atol=1e-5)
        np.testing.assert_allclose([c.probability for c in item.clusters], np.sort(p)[::-1][:4], atol=1e-4)


def test_more_than_there_are(service: TestClient, pictures: list[bytes]) -> None:
    clusters = service.post("/v1/clusters?top=20", files={"images": pictures[0]}).json()["items"][0]["clusters"]
    assert len(clusters) == 12
    np.testing.assert_allclose(sum(c["probability"] for c in clusters), 1, atol=1e-5)


def test_list_is_sorted_by_size_and_paged(service: TestClient, package: Path, truth: Truth) -> None:
    sizes = np.bincount(scores_of(package, truth).argmax(1), minlength=12)
    answer = ClusterList.model_validate(service.get("/v1/clusters").json())
    assert [c.size for c in answer.clusters] == sorted(sizes, reverse=True)
    assert all(sizes[c.cluster] == c.size for c in answer.clusters)
    assert (answer.total, answer.samples) == (12, 40)
    page = ClusterList.model_validate(service.get("/v1/clusters?limit=3&offset=2").json())
    assert page.clusters == answer.clusters[2:5]
    assert service.get("/v1/clusters?offset=50").json()["clusters"] == []


def test_one_cluster(service: TestClient, package: Path, truth: Truth) -> None:
    scores = scores_of(package, truth)
    largest = service.get("/v1/clusters?limit=1").json()["clusters"][0]
    answer = ClusterAnswer.model_validate(service.get(f"/v1/clusters/{largest['cluster']}?limit=3").json())
    own = scores[scores.argmax(1) == answer.cluster, answer.cluster]
    assert answer.size == largest["size"] == len(own)
    np.testing.assert_allclose([m.score for m in answer.members], np.sort(own)[::-1][:3], atol=1e-5)
    assert all(m.cluster == answer.cluster for m in answer.members)
    assert all(m.thumbnail is None or m.thumbnail.startswith("data:image/jpeg;base64,/9j/") for m in answer.members)
    assert abs(answer.norm - 1) < 1e-5
    prototypes = load_package(package).prototypes.numpy()
    cosines = prototypes @ prototypes[answer.cluster]
    assert [n.cluster for n in answer.nearest] == [c for c in np.argsort(-cosines) if c != answer.cluster][:5]


def test_unknown_clusters(service: TestClient) -> None:
    for number in (12, -1, 10**30):
        response = service.get(f"/v1/clusters/{number}")
        assert response.status_code == 404
        assert ErrorAnswer.model_validate(response.json()).error.code == "no_such_cluster"


def test_without_embeddings(bare: TestClient) -> None:
    response = bare.get("/v1/clusters")
    assert response.status_code == 409
    error = ErrorAnswer.model_validate(response.json()).error
    assert error.code == "no_embeddings"
    assert "swav embed RUN" in error.message
    answer = ClusterAnswer.model_validate(bare.get("/v1/clusters/3").json())
    assert answer.size is None
    assert answer.members == []
    assert len(answer.nearest) == 5


def test_a_model_without_prototypes(package: Path, stored: Path, pictures: list[bytes], tmp_path: Path) -> None:
    head = load_file(package / "head.safetensors")
    model = Path(shutil.copytree(package, tmp_path / "model"))
    save_file(head | {"prototypes": head["prototypes"][:0].clone()}, model / "head.safetensors")
    table = pq.read_table(stored / "embeddings.parquet")
    table = table.set_column(table.column_names.index("cluster"), "cluster", pa.array([-1] * len(table), pa.int32()))
    pq.write_table(table, tmp_path / "embeddings.parquet")
    with TestClient(create_app(ServiceSettings(model=model, embeddings=tmp_path, threads=1))) as client:
        image = {"images": pictures[0]}
        asked = [client.post("/v1/clusters", files=image), client.get("/v1/clusters"), client.get("/v1/clusters/0")]
        for response in asked:
            assert response.status_code == 409
            assert ErrorAnswer.model_validate(response.json()).error.code == "no_prototypes"
        assert client.post("/v1/embeddings", files=image).status_code == 200
        near = client.post("/v1/neighbors", files=image).json()["items"][0]["neighbors"]
        assert near[0]["cluster"] == -1
        assert client.get("/v1/models").json()["models"][0]["prototypes"] == 0
