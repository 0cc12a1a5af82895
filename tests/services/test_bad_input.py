"""Whatever is sent, the answer has the one error shape and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from services.embeddings.answers import ErrorAnswer
from tests.makers import png_header, smooth

JPEG = {"content-type": "image/jpeg"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=X"}


def refused(response: Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = ErrorAnswer.model_validate(response.json()).error
    assert error.code == code
    assert error.message
    assert "Traceback" not in response.text
    return error.model_dump()


@pytest.mark.parametrize("route", ["/v1/embeddings", "/v1/clusters", "/v1/neighbors"])
def test_single_bad_images(service: TestClient, pictures: list[bytes], route: str) -> None:
    refused(service.post(route, content=b"hello, this is text", headers=JPEG), 422, "not_an_image")
    refused(service.post(route, content=pictures[0][:400], headers=JPEG), 422, "truncated")
    refused(service.post(route, content=png_header(50_000, 50_000), headers=JPEG), 422, "too_many_pixels")
    refused(service.post(route, content=b"", headers=JPEG), 422, "no_images")
    refused(service.post(route, files={"images": ("a.txt", b"text")}), 422, "not_an_image")


def test_images_outside_the_policy(service: TestClient, draw: Callable[..., bytes]) -> None:
    refused(service.post("/v1/embeddings", content=draw(1, 8, 8), headers=JPEG), 422, "too_small")
    refused(service.post("/v1/embeddings", content=draw(1, 2000, 20), headers=JPEG), 422, "extreme_aspect")
    refused(service.post("/v1/embeddings", content=draw(1, 1100, 1000), headers=JPEG), 422, "too_many_pixels")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "video/mp4"])
def test_content_types_not_taken(service: TestClient, pictures: list[bytes], content_type: str) -> None:
    response = service.post("/v1/embeddings", content=pictures[0], headers={"content-type": content_type})
    refused(response, 415, "unsupported_media_type")


def test_compressed_body(service: TestClient, pictures: list[bytes]) -> None:
    response = service.post("/v1/embeddings", content=pictures[0], headers={**JPEG, "content-encoding": "gzip"})
    refused(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"images": []}',
        '{"images": {}}',
        '{"images": [1]}',
        '{"images": [{"base64": 3}]}',
        '{"images": [{"base64": "!!"}]}',
        '{"images": [{"base64": "\\u00e9"}]}',
        '{"images": [{"base64": "", "name": 1}]}',
        "\udcff",
    ],
)
def test_bad_json(service: TestClient, body: str) -> None:
    response = service.post("/v1/embeddings", content=body.encode("utf-8", "surrogateescape"), headers=JSON)
    assert response.status_code == 422
    assert ErrorAnswer.model_validate(response.json()).error.code in ("invalid_request", "no_images", "invalid_base64")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "no_images"),
        (b"garbage", "invalid_request"),
        (b"--X\r\n", "no_images"),
        (b'--X\r\nContent-Disposition: form-data; name="images"\r\n\r\nno file\r\n--X--\r\n', "no_images"),
        (b'--X\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\nabc\r\n--X--\r\n', "no_images"),
        (b"--X\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--X--\r\n", "invalid_request"),
    ],
)
def test_bad_forms(service: TestClient, body: bytes, code: str) -> None:
    refused(service.post("/v1/embeddings", content=body, headers=FORM), 422, code)


def test_form_without_boundary(service: TestClient) -> None:
    refused(service.post("/v1/embeddings", content=b"x", headers={"content-type": "multipart/form-data"}), 422, "invalid_request")


def test_too_many_items(service: TestClient, pictures: list[bytes]) -> None:
    error = refused(service.post("/v1/embeddings", files=[("images", ("x", pictures[0]))] * 9), 413, "too_many_items")
    assert error["detail"] == {"limit": 8}
    refused(service.post("/v1/embeddings", json={"images": [{"base64": ""}] * 9}), 413, "too_many_items")


def test_too_many_bytes(service: TestClient) -> None:
    large = b"\xff\xd8" + b"x" * 100_001
    refused(service.post("/v1/embeddings", content=large, headers=JPEG), 413, "too_many_bytes")
    refused(service.post("/v1/embeddings", files={"images": ("x", large)}), 413, "too_many_bytes")
    refused(service.post("/v1/embeddings", json={"images": [{"base64": "A" * 140_000}]}), 413, "too_many_bytes")
    refused(service.post("/v1/embeddings", content=b"x" * 500_001, headers=FORM), 413, "too_many_bytes")
    refused(service.post("/v1/embeddings", content=b"x" * 500_001, headers=JSON), 413, "too_many_bytes")


def test_bytes_are_counted_whatever_content_length_says(service: TestClient) -> None:
    def endless() -> Iterator[bytes]:  # sent chunked, without a length
        for _ in range(100):
            yield b"x" * 10_000

    for headers in (JPEG, FORM, JSON):
        refused(service.post("/v1/embeddings", content=endless(), headers=headers), 413, "too_many_bytes")
        lying = {**headers, "content-length": "10"}
        refused(service.post("/v1/embeddings", content=b"x" * 600_000, headers=lying), 413, "too_many_bytes")
    assert service.app.state.service.bodies.held == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/clusters?top=0"),
        ("POST", "/v1/clusters?top=21"),
        ("POST", "/v1/neighbors?k=0"),
        ("POST", "/v1/neighbors?k=101"),
        ("POST", "/v1/neighbors?k=many"),
        ("POST", "/v1/embeddings?kind=logits"),
        ("GET", "/v1/neighbors"),
        ("GET", "/v1/neighbors?key=0001&k=1000"),
        ("GET", "/v1/clusters?limit=0"),
        ("GET", "/v1/clusters?offset=-1"),
        ("GET", "/v1/clusters/first"),
        ("GET", "/v1/clusters/1?limit=10000"),
    ],
)
def test_parameters_out_of_range(service: TestClient, pictures: list[bytes], method: str, path: str) -> None:
    body = {"content": pictures[0], "headers": JPEG} if method == "POST" else {}
    error = refused(service.request(method, path, **body), 422, "invalid_request")
    assert error["detail"]["problems"][0]["where"].split(".")[-1] in error["message"]


def test_wrong_places_and_methods(service: TestClient) -> None:
    refused(service.get("/v1/nothing"), 404, "not_found")
    response = service.get("/v1/embeddings")
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    refused(service.delete("/v1/clusters"), 405, "method_not_allowed")


def test_unexpected_failure_leaks_nothing(service: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /etc/x")

    model = service.app.state.service.first.model  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "encode", broken)
    unseen = smooth(991)  # the service answers images that it has seen without encoding them
    response = service.post("/v1/embeddings", content=unseen, headers=JPEG)
    refused(response, 500, "internal_error")
    assert "secret" not in response.text
    monkeypatch.undo()
    assert service.post("/v1/embeddings", content=unseen, headers=JPEG).status_code == 200


def test_odd_images_never_break_the_service(service: TestClient, shared: object) -> None:
    from pathlib import Path

    folder = Path(str(shared)) / "data" / "odd-images"
    for path in sorted(folder.glob("bad-*"))[::6]:
        data = path.read_bytes()
        response = service.post("/v1/embeddings", content=data, headers=JPEG)
        assert response.status_code in (413, 422), path.name
        ErrorAnswer.model_validate(response.json())
    assert service.get("/readyz").status_code == 200
