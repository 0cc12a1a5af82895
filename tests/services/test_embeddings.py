"""POST /v1/embeddings: the encoder's own numbers, however the images are sent."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response

from services.embeddings.answers import EmbeddingsAnswer, numbers, written

Truth = tuple[np.ndarray, np.ndarray]


def vectors(response: Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    answer = EmbeddingsAnswer.model_validate(response.json())
    assert [item.index for item in answer.items] == list(range(len(answer.items)))
    found = np.array([item.embedding for item in answer.items])
    assert found.shape[1] == answer.dim
    return found


@pytest.mark.parametrize(("kind", "which"), [("embedding", 0), ("projection", 1)])
def test_equals_plain_torch(service: TestClient, pictures: list[bytes], truth: Truth, kind: str, which: int) -> None:
    files = [("images", (f"{n}.jpg", pictures[n])) for n in range(8)]
    response = service.post("/v1/embeddings", params={"kind": kind}, files=files)
    found = vectors(response)
    np.testing.assert_allclose(found, truth[which][:8], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert [item["name"] for item in response.json()["items"]] == [f"{n}.jpg" for n in range(8)]
    assert response.json()["kind"] == kind


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", "image/x-whatever"])
def test_raw_body(service: TestClient, pictures: list[bytes], truth: Truth, content_type: str) -> None:
    response = service.post("/v1/embeddings", content=pictures[5], headers={"content-type": content_type})
    np.testing.assert_allclose(vectors(response), truth[0][5:6], atol=1e-5)
    assert response.json()["items"][0]["name"] is None


def test_json_body(service: TestClient, pictures: list[bytes], truth: Truth) -> None:
    images = [{"base64": base64.b64encode(pictures[n]).decode(), "name": f"n{n}"} for n in (3, 9)]
    response = service.post("/v1/embeddings", json={"images": images})
    np.testing.assert_allclose(vectors(response), truth[0][[3, 9]], atol=1e-5)
    assert [item["name"] for item in response.json()["items"]] == ["n3", "n9"]


def test_bad_images_among_many_do_not_fail_the_others(service: TestClient, pictures: list[bytes], truth: Truth) -> None:
    bodies = [b"just some text, no image", pictures[0], pictures[1][:300], pictures[2], b"", b"\xff\xd8" + b"x" * 200_000]
    response = service.post("/v1/embeddings", files=[("images", (f"{n}", body)) for n, body in enumerate(bodies)])
    assert response.status_code == 200
    items = response.json()["items"]
    EmbeddingsAnswer.model_validate(response.json())
    assert [item.get("error", {}).get("code") for item in items] == [
        "not_an_image",
        None,
        "truncated",
        None,
        "not_an_image",
        "too_many_bytes",
    ]
    np.testing.assert_allclose([items[1]["embedding"], items[3]["embedding"]], truth[0][[0, 2]], atol=1e-5)


def test_all_bad_among_many_is_an_answer_still(service: TestClient) -> None:
    response = service.post("/v1/embeddings", files=[("images", ("a", b"text")), ("images", ("b", b"text"))])
    assert response.status_code == 200
    assert [item["error"]["code"] for item in response.json()["items"]] == ["not_an_image"] * 2


def test_other_formats_and_sizes(service: TestClient, draw: Callable[..., bytes]) -> None:
    bodies = [draw(1, 300, 100, "PNG"), draw(1, 33, 200, "WEBP"), draw(1, 16, 16, "GIF")]
    assert len(vectors(service.post("/v1/embeddings", files=[("images", ("x", body)) for body in bodies]))) == 3


def test_names_that_are_hostile(service: TestClient, pictures: list[bytes]) -> None:
    image = base64.b64encode(pictures[0]).decode()
    body = '{"images":[{"name":"\\ud800<b>\\u0000","base64":"' + image + '"}]}'
    response = service.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200
    assert b"\\ud800<b>\\u0000" in response.content
    raw = b'--X\r\nContent-Disposition: form-data; name="images"; filename="caf\xe9.jpg"\r\n\r\n' + pictures[0] + b"\r\n--X--\r\n"
    response = service.post("/v1/embeddings", content=raw, headers={"content-type": "multipart/form-data; boundary=X"})
    assert len(vectors(response)) == 1


def test_large_answers_are_written_in_a_thread() -> None:
    threads = []

    def make() -> dict[str, Any]:
        threads.append(threading.current_thread())
        return {"name": "caf\udce9", "vector": numbers(np.array([1 / 3, 1e-9], np.float32))}

    for count in (1, 10_000):
        answer = asyncio.run(written(make, count))
        assert json.loads(answer.body) == {"name": "caf\udce9", "vector": [0.3333333, 0.0]}
    assert [thread is threading.main_thread() for thread in threads] == [True, False]
