"""Neighbours among the stored samples: exact, best first."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi.testclient import TestClient

from services.embeddings.answers import ErrorAnswer, NeighborsAnswer, StoredNeighborsAnswer
from swav_platform.models.inference import highest

Truth = tuple[np.ndarray, np.ndarray]


def test_images_find_themselves_first(service: TestClient, pictures: list[bytes], truth: Truth) -> None:
    response = service.post("/v1/neighbors?k=6", files=[("images", ("x", picture)) for picture in pictures[2:5]])
    answer = NeighborsAnswer.model_validate(response.json())
    for number, item in enumerate(answer.items, start=2):
        cosines = truth[0] @ truth[0][number]
        assert item.neighbors[0].sample == number
        np.testing.assert_allclose([n.score for n in item.neighbors], np.sort(cosines)[::-1][:6], atol=2e-3)  # stored in float16
        assert len(item.neighbors) == 6


def test_a_bad_image_among_good_ones(service: TestClient, pictures: list[bytes]) -> None:
    items = service.post("/v1/neighbors?k=1", files=[("images", ("a", b"text")), ("images", ("b", pictures[4]))]).json()["items"]
    assert items[0]["error"]["code"] == "not_an_image"
    assert items[1]["neighbors"][0]["sample"] == 4


def test_k_beyond_the_samples(service: TestClient, pictures: list[bytes]) -> None:
    response = service.post("/v1/neighbors?k=100&thumbnails=false", files={"images": pictures[0]})
    found = response.json()["items"][0]["neighbors"]
    assert sorted(n["sample"] for n in found) == list(range(40))
    assert all(n["thumbnail"] is None for n in found)


def test_of_a_stored_sample(service: TestClient, truth: Truth) -> None:
    answer = StoredNeighborsAnswer.model_validate(service.get("/v1/neighbors?key=0003&k=5").json())
    cosines = truth[0] @ truth[0][3]
    expected = [n for n in np.argsort(-cosines) if n != 3][:5]
    assert answer.item.sample == 3
    assert answer.item.label == "odd"
    np.testing.assert_allclose([n.score for n in answer.neighbors], cosines[expected], atol=2e-3)
    assert 3 not in [n.sample for n in answer.neighbors]


def test_a_key_in_two_shards(service: TestClient) -> None:
    response = service.get("/v1/neighbors?key=0007")
    assert response.status_code == 409
    error = ErrorAnswer.model_validate(response.json()).error
    assert error.code == "ambiguous_key"
    assert error.detail == {"shards": ["a.tar", "b.tar"], "ids": [7, 20]}
    assert service.get("/v1/neighbors?key=0007&shard=b.tar").json()["item"]["sample"] == 20


@pytest.mark.parametrize("query", ["key=none", "key=%ff%fe", "key=", "key=0001&shard=c.tar"])
def test_unknown_keys(service: TestClient, query: str) -> None:
    response = service.get(f"/v1/neighbors?{query}")
    assert response.status_code == 404
    assert ErrorAnswer.model_validate(response.json()).error.code == "no_such_sample"


def test_without_embeddings(bare: TestClient, pictures: list[bytes]) -> None:
    for response in (bare.post("/v1/neighbors", files={"images": pictures[0]}), bare.get("/v1/neighbors?key=a")):
        assert response.status_code == 409
        error = ErrorAnswer.model_validate(response.json()).error
        assert error.code == "no_embeddings"
        assert "swav embed RUN --data PATTERN" in error.message


def test_best_equals_a_full_sort() -> None:
    scores = np.random.default_rng(0).integers(0, 20, 200).astype(np.float32)  # many ties
    for k in (1, 7, 199, 200, 500):
        places, found = highest(scores, k)
        np.testing.assert_array_equal(places, np.argsort(-scores, kind="stable")[:k])
        np.testing.assert_array_equal(found, scores[places])
    assert len(highest(scores[:0], 3)[0]) == 0
