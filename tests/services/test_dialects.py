"""Clients of OpenAI, infinity and Cohere are answered in their own words, and everybody's base64 is read."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from services.embeddings.answers import CohereAnswer, EmbeddingsAnswer, ModelsAnswer, OpenAIAnswer
from services.embeddings.edge import base64text
from services.embeddings.server import serving
from services.embeddings.settings import ServiceSettings
from tests.services.test_bad_input import refused

Truth = tuple[np.ndarray, np.ndarray]


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def uri(image: bytes) -> str:
    return "data:image/jpeg;base64," + text(image)


@pytest.fixture(scope="module")
def address(package: Any, stored: Any) -> Iterator[str]:
    with serving(ServiceSettings(model=package, embeddings=stored, threads=1)) as url:
        yield url


def test_openai_client(address: str, pictures: list[bytes], truth: Truth) -> None:
    client = openai.OpenAI(base_url=address + "/v1", api_key="any", max_retries=0)
    for more in ({}, {"encoding_format": "float"}):  # base64 without being asked
        answer = client.embeddings.create(model="any", input=[uri(pictures[0]), text(pictures[1])], **more)
        np.testing.assert_allclose([item.embedding for item in answer.data], truth[0][:2], atol=1e-5)
        assert [item.index for item in answer.data] == [0, 1]
        assert (answer.model, answer.object) == ("tiny", "list")
    single = client.embeddings.create(model="any", input=uri(pictures[0]), dimensions=4).data[0].embedding
    np.testing.assert_allclose(single, truth[0][0, :4] / np.linalg.norm(truth[0][0, :4]), atol=1e-5)
    [model] = client.models.list().data
    assert client.models.retrieve(model.id).id == "tiny"
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.models.retrieve("other")
    with pytest.raises(openai.UnprocessableEntityError, match="no image as base64"):
        client.embeddings.create(model="any", input="a text, to embed")
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
        client.embeddings.create(model="any", input=uri(pictures[0]), dimensions=100_000)


def test_openai_client_async(address: str, pictures: list[bytes], truth: Truth) -> None:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=address + "/v1", api_key="any", max_retries=0) as client:
            return await client.embeddings.create(model="any", input=uri(pictures[2]), extra_body={"kind": "projection"})

    np.testing.assert_allclose(asyncio.run(ask()).data[0].embedding, truth[1][2], atol=1e-5)


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings"])
def test_infinity(service: TestClient, pictures: list[bytes], truth: Truth, path: str) -> None:
    body = {"model": "m", "input": [uri(pictures[0])], "modality": "image", "encoding_format": "float"}
    answer = OpenAIAnswer.model_validate(service.post(path, json=body).json())
    np.testing.assert_allclose(answer.data[0].embedding, truth[0][0], atol=1e-5)
    refused(service.post(path, json=body | {"modality": "text"}), 422, "invalid_request")


@pytest.mark.parametrize("form", ["images", "inputs"])
def test_cohere(service: TestClient, pictures: list[bytes], truth: Truth, form: str) -> None:
    uris = [uri(picture) for picture in pictures[:3]]
    inputs = [{"content": [{"type": "image_url", "image_url": {"url": one}}]} for one in uris]
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    body = {"model": "embed-v4.0", "input_type": "image", "embedding_types": kinds, form: uris if form == "images" else inputs}
    answer = CohereAnswer.model_validate(service.post("/v2/embed", json=body).json())
    vectors = {kind: answer.embeddings[kind] for kind in kinds}
    np.testing.assert_allclose(vectors["float"], truth[0][:3], atol=1e-5)
    np.testing.assert_allclose([np.frombuffer(base64.b64decode(v), "<f4") for v in vectors["base64"]], truth[0][:3], atol=1e-5)
    small = np.array(vectors["int8"])
    assert np.abs(small).max() == 127
    cosines = (small * truth[0][:3]).sum(1) / np.linalg.norm(small, axis=1)
    assert cosines.min() > 0.999
    np.testing.assert_array_equal(np.array(vectors["uint8"]), small + 128)
    signs = np.unpackbits(np.array(vectors["ubinary"], np.uint8), axis=1)
    np.testing.assert_array_equal(signs, np.array(vectors["float"]) > 0)
    np.testing.assert_array_equal(np.array(vectors["binary"]), np.array(vectors["ubinary"]) - 128)
    assert answer.meta["billed_units"] == {"images": 3}

    short = service.post("/v2/embed", json={"images": uris, "output_dimension": 8}).json()["embeddings"]
    assert {kind: np.shape(value) for kind, value in short.items()} == {"float": (3, 8)}


def test_a_bad_image_fails_requests_whose_answers_have_no_place_for_it(service: TestClient, pictures: list[bytes]) -> None:
    images = [uri(pictures[0]), "***", text(b"no image"), uri(pictures[1])]
    for path, key in (("/v1/embeddings", "input"), ("/v2/embed", "images")):
        error = refused(service.post(path, json={key: images}), 422, "bad_images")
        told = [(item["index"], item["error"]["code"]) for item in error["detail"]["items"]]
        assert told == [(1, "invalid_base64"), (2, "not_an_image")]


def forms(image: bytes) -> dict[str, str]:
    plain, lines = text(image), base64.encodebytes(image).decode()
    return {
        "plain": plain,
        "MIME lines": lines,
        "CRLF": lines.replace("\n", "\r\n"),
        "spaces around": f"  {plain}\n",
        "byte order mark": "\ufeff" + plain,
        "URL-safe": base64.urlsafe_b64encode(image).decode(),
        "no padding": plain.rstrip("="),
        "data URI": "data:image/jpeg;base64," + plain,
        "without type": "data:;base64," + plain,
        "parameters": "data:image/jpeg;charset=utf-8;base64," + plain,
        "upper case": "DATA:image/jpeg;BASE64," + plain,
        "URL-safe URI with lines": "data:image/jpeg;base64,\r\n" + base64.urlsafe_b64encode(image).decode().rstrip("="),
        "escaped": "data:image/jpeg;base64," + quote(plain, safe=""),
        "URI without base64": "data:image/jpeg," + quote(image),
    }


def test_forms_of_base64(service: TestClient, pictures: list[bytes], truth: Truth) -> None:
    image = pictures[0] + b"\0" * ((1 - len(pictures[0])) % 3)  # so that the padding is two signs
    for name, form in forms(image).items():
        assert base64text.decode(form) == image, name
    response = service.post("/v1/embeddings", json={"images": [{"base64": form} for form in list(forms(image).values())[-8:]]})
    answer = EmbeddingsAnswer.model_validate(response.json())
    np.testing.assert_allclose([item.embedding for item in answer.items], np.tile(truth[0][0], (8, 1)), atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("bad", ["***", "é", "data:image/png;base64", "A", "AAAAA", "AA=A", "AA==AA==", "data:;base64,%%%"])
def test_what_is_no_base64_is_the_error_of_its_item(service: TestClient, pictures: list[bytes], bad: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        base64text.decode(bad)
    items = service.post("/v1/embeddings", json={"images": [{"base64": t} for t in (text(pictures[0]), bad)]}).json()["items"]
    assert "embedding" in items[0]
    assert items[1]["error"]["code"] == "invalid_base64"
    assert "images[1]" in items[1]["error"]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b | {"imagez": 1}, "images"),
        (lambda b: b | {"Kind": "projection"}, "kind"),
        (lambda b: b | {"knd": "projection"}, "kind"),
        (lambda b: {"inputs": b["images"]}, "input"),
        (lambda b: b | {"zzzz": 0}, "Known are"),
        (lambda b: b | {"input": "x"}, "images"),
        (lambda b: b | {"kind": "logits"}, "kind"),
        (lambda b: {"images": [{**b["images"][0], "nam": "a"}]}, "name"),
    ],
)
def test_unknown_names_in_a_body(
    service: TestClient, pictures: list[bytes], change: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    response = service.post("/v1/embeddings", json=change({"images": [{"base64": text(pictures[0])}]}))
    assert response.status_code == 422
    assert words in response.json()["error"]["message"]


def test_escapes_are_undone_exactly() -> None:
    every = bytes(range(256)) * 3 + b"=== =\r\n= \n==41%41\t \n _~"
    for text in (quote(every, safe=""), quote(every, safe="=:_+"), "".join(f"%{byte:02x}" for byte in every)):
        assert base64text.decode("data:," + text) == every
    assert base64text.decode("data:,a%20b\x7f") == b"a b\x7f"
    for stray in ("%", "%4", "%zz", "%%41", "a%"):
        with pytest.raises(ValueError, match="%"):
            base64text.decode("data:," + stray)


def test_settings_in_a_body_count(service: TestClient, pictures: list[bytes], truth: Truth) -> None:
    body: dict[str, Any] = {"images": [{"base64": text(pictures[0])}]}
    answer = EmbeddingsAnswer.model_validate(service.post("/v1/embeddings", json=body | {"kind": "projection"}).json())
    assert (answer.kind, answer.dim) == ("projection", truth[1].shape[1])
    assert len(service.post("/v1/clusters", json=body | {"top": 2}).json()["items"][0]["clusters"]) == 2
    files = {"images": ("x", pictures[0])}
    found = service.post("/v1/neighbors", files=files, data={"k": "2", "thumbnails": "false"}).json()["items"][0]["neighbors"]
    assert [neighbour["thumbnail"] for neighbour in found] == [None, None]
    refused(service.post("/v1/clusters?top=3", json=body | {"top": 2}), 422, "invalid_request")
    refused(service.post("/v1/clusters", json=body | {"top": "2"}), 422, "invalid_request")
    refused(service.post("/v1/clusters", files=files, data={"tip": "2"}), 422, "invalid_request")
    refused(service.post("/v1/clusters", files=files | {"image": ("y", pictures[1])}), 422, "invalid_request")


@pytest.mark.parametrize(
    ("path", "near"), [("/v1/clusters?limt=3", "limit"), ("/v1/neighbors?key=0001&top_k=3", "k"), ("/healthz?x=1", None)]
)
def test_unknown_parameters(service: TestClient, path: str, near: str | None) -> None:
    error = refused(service.get(path), 422, "invalid_request")
    assert error["detail"]["nearest"] in (near, None)
    assert error["detail"]["unknown"] in path


def test_many_small_elements_do_not_fill_the_memory(service: TestClient) -> None:
    for unit in ("{},", "[],", "0,", '"",'):
        body = '{"images": [' + unit * 100_000 + "0]}"
        refused(
            service.post("/v1/embeddings", content=body, headers={"content-type": "application/json"}), 422, "invalid_request"
        )


def test_models_in_both_forms(service: TestClient) -> None:
    answer = ModelsAnswer.model_validate(service.get("/v1/models").json())
    assert [entry.id for entry in answer.data] == [card.name for card in answer.models]
    json.dumps(answer.model_dump())
