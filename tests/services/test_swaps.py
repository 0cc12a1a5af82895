"""New versions replace old ones without a gap; damaged ones are refused, and everybody is told why."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
from fastapi.testclient import TestClient
from mlflow import MlflowClient

from services.embeddings.app import create_app
from services.embeddings.settings import ServiceSettings, Source
from swav_platform.models.package import package_digest
from tests.services.conftest import direct

JPEG = {"content-type": "image/jpeg"}


def changed(package: Path, folder: Path, name: str = "tiny") -> Path:
    """The package with other weights of the projection, and so with another digest and the same features."""
    shutil.copytree(package, folder)
    path = folder / "head.safetensors"
    head = safetensors.torch.load_file(path)
    path.write_bytes(
        safetensors.torch.save({key: value.flip(0) if key == "prototypes" else value for key, value in head.items()})
    )
    told = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(told | {"name": name}))
    return folder


def replace(package: Path, place: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(package, place)


@pytest.fixture
def place(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "served"))


@pytest.fixture
def swapped(place: Path) -> Iterator[TestClient]:
    with TestClient(create_app(ServiceSettings(model=place, threads=1, drain=0.1))) as client:
        yield client


def reload(client: TestClient) -> dict[str, str]:
    answer = client.post("/v1/models/reload")
    assert answer.status_code == 200
    [told] = answer.json()["models"]
    return dict(told)


def test_a_new_version_replaces_the_old_one(swapped: TestClient, place: Path, package: Path, tmp_path: Path) -> None:
    assert reload(swapped)["result"] == "unchanged"
    fresh = changed(package, tmp_path / "fresh")
    replace(fresh, place)
    assert reload(swapped) == {"name": "tiny", "digest": package_digest(fresh), "result": "swapped"}
    assert swapped.get("/v1/models").json()["models"][0]["digest"] == package_digest(fresh)
    text = swapped.get("/metrics").text
    assert 'swav_service_swaps_total{model="tiny",result="swapped"} 1.0' in text
    assert f'digest="{package_digest(fresh)}"' in text
    assert f'digest="{package_digest(package)}"' not in text


DAMAGES = {
    "truncated": "can't be loaded",
    "nan": "not finite",
    "shape": "size mismatch",
    "half": "float16",
    "dimensions": "another name",
    "missing": "can't be reached",
}
"""Damages, and words of the reason for which such a package is refused."""


def _damage(place: Path, damage: str) -> None:
    path = place / "encoder.safetensors"
    weights = safetensors.torch.load_file(path)
    name = next(name for name, weight in weights.items() if weight.ndim == 4)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "missing":
        shutil.rmtree(place)
    else:
        if damage == "nan":
            weights[name][0, 0, 0, 0] = float("nan")
        if damage == "shape":
            weights[name] = weights[name][:1]
        if damage == "half":
            weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
        path.write_bytes(safetensors.torch.save(weights))
    if damage == "dimensions":  # a whole package whose vectors nobody who knows the old one could use
        _narrow(place)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_version_is_refused(swapped: TestClient, place: Path, pictures: list[bytes], damage: str) -> None:
    old = swapped.get("/v1/models").json()["models"][0]["digest"]
    _damage(place, damage)
    told, words = reload(swapped), DAMAGES[damage]
    assert told["result"] == "refused"
    assert words in told["because"]
    ready = swapped.get("/readyz")
    assert ready.status_code == 200
    assert words in ready.json()["refused"]["tiny"]["because"]
    answer = swapped.post("/v1/embeddings", content=pictures[0], headers=JPEG)
    assert answer.json()["model"]["digest"] == old
    if damage != "missing":
        assert 'swav_service_swaps_total{model="tiny",result="refused"} 1.0' in swapped.get("/metrics").text


def _narrow(place: Path) -> None:
    told = json.loads((place / "model.json").read_text())
    told["projection_dim"] = told["model"]["projection_dim"] = 8
    (place / "model.json").write_text(json.dumps(told))
    head = safetensors.torch.load_file(place / "head.safetensors")
    last = max(name for name, weight in head.items() if name.startswith("projection.") and weight.ndim == 2)
    for name in (last, last.replace("weight", "bias")):
        if name in head:
            head[name] = head[name][:8].clone()
    head["prototypes"] = head["prototypes"][:, :8].clone()
    (place / "head.safetensors").write_bytes(safetensors.torch.save(head))


def test_a_repaired_version_clears_the_refusal(swapped: TestClient, place: Path, package: Path) -> None:
    (place / "encoder.safetensors").write_bytes(b"")
    assert reload(swapped)["result"] == "refused"
    replace(package, place)
    assert reload(swapped)["result"] == "unchanged"
    assert swapped.get("/readyz").json() == {"status": "ready"}


def test_embeddings_come_with_their_model(package: Path, stored: Path, tmp_path: Path, pictures: list[bytes]) -> None:
    served = Path(shutil.copytree(package, tmp_path / "served"))
    sets = tmp_path / "sets"
    shutil.copytree(stored, sets / package_digest(package))
    fresh = changed(package, tmp_path / "fresh")
    with TestClient(create_app(ServiceSettings(model=served, embeddings=sets, threads=1, drain=0.1))) as client:
        replace(fresh, served)
        told = reload(client)  # a set of the new model is missing
        assert told["result"] == "refused"
        assert client.get("/v1/neighbors?key=0001").status_code == 200
        shutil.copytree(stored, sets / package_digest(fresh))
        report = json.loads((sets / package_digest(fresh) / "embeddings.json").read_text())
        (sets / package_digest(fresh) / "embeddings.json").write_text(json.dumps(report | {"model": package_digest(fresh)}))
        table = pq.read_table(stored / "embeddings.parquet")
        pq.write_table(table.slice(0, 30), sets / package_digest(fresh) / "embeddings.parquet")
        assert reload(client)["result"] == "swapped"
        assert client.get("/v1/models").json()["models"][0]["samples"] == 30
        answer = client.post("/v1/neighbors?k=1", content=pictures[1], headers=JPEG)
        assert answer.json()["model"]["digest"] == package_digest(fresh)


def test_answers_during_swaps_are_of_the_version_they_name(
    swapped: TestClient, place: Path, package: Path, pictures: list[bytes], tmp_path: Path
) -> None:
    versions = [package, changed(package, tmp_path / "fresh")]
    truth = {package_digest(folder): direct(folder, pictures[:6])[1] for folder in versions}
    found: list[tuple[int, str, list[float]]] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            answer = swapped.post("/v1/embeddings?kind=projection", content=pictures[number], headers=JPEG)
            assert answer.status_code == 200
            found.append((number, answer.json()["model"]["digest"], answer.json()["items"][0]["embedding"]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for turn in range(4):
        replace(versions[(turn + 1) % 2], place)
        assert reload(swapped)["result"] == "swapped"
    stop.set()
    for thread in threads:
        thread.join()
    assert {digest for _, digest, _ in found} == set(truth)
    for number, digest, vector in found:
        np.testing.assert_allclose(vector, truth[digest][number], atol=1e-5)


def test_several_models_by_name(package: Path, tmp_path: Path, pictures: list[bytes]) -> None:
    other = changed(package, tmp_path / "other")
    settings = ServiceSettings(model=package, others=(Source(str(other), name="next", weight=1.0),), threads=1)
    with TestClient(create_app(settings)) as client:

        def digest(**query: str) -> str:
            answer = client.post("/v1/embeddings", params=query, content=pictures[0], headers=JPEG)
            return str(answer.json()["model"]["digest"])

        assert digest(model="tiny") == package_digest(package)
        assert digest(model="next") == digest(model=package_digest(other)) == package_digest(other)
        assert digest() == package_digest(other)  # a canary with all of the requests that name no model
        assert [card["name"] for card in client.get("/v1/models").json()["models"]] == ["tiny", "next"]
        assert client.post("/v1/embeddings?model=none", content=pictures[0], headers=JPEG).status_code == 404
        body = {"model": "next", "input": base64.b64encode(pictures[0]).decode()}
        assert client.post("/v1/embeddings", json=body).json()["model"] == "next"
        for path, images in (("/v1/embeddings", "input"), ("/embeddings", "input"), ("/v2/embed", "images")):
            unknown = client.post(path, json={"model": "none", images: [body["input"]]})
            assert (unknown.status_code, unknown.json()["error"]["detail"]) == (404, {"models": ["tiny", "next"]})
        assert client.post("/v1/models/reload?name=next").json()["models"][0]["result"] == "unchanged"


def test_a_moved_alias_is_taken_and_a_damaged_one_is_not(package: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
    client.create_registered_model("tiny")

    def register(folder: Path) -> str:
        run = client.create_run(experiment).info.run_id
        client.log_artifacts(run, str(folder), "model")
        version = client.create_model_version("tiny", f"{client.get_run(run).info.artifact_uri}/model", run)
        client.set_registered_model_alias("tiny", "live", version.version)
        return str(version.version)

    register(package)
    settings = ServiceSettings(model="models:/tiny@live", tracking_uri=uri, threads=1, drain=0.1)
    with TestClient(create_app(settings)) as service:
        fresh = changed(package, tmp_path / "fresh")
        register(fresh)
        assert reload(service)["result"] == "swapped"
        for damage in ("truncated", "nan", "shape", "half", "dimensions"):
            bad = changed(package, tmp_path / damage)
            _damage(bad, damage)
            version = register(bad)
            assert reload(service)["result"] == "refused"
            refusal = service.get("/readyz").json()["refused"]["tiny"]
            assert refusal["version"] == version
            assert DAMAGES[damage] in refusal["because"]
            assert service.get("/v1/models").json()["models"][0]["digest"] == package_digest(fresh)
        client.set_registered_model_alias("tiny", "live", "2")
        assert reload(service)["result"] == "unchanged"
        assert "refused" not in service.get("/readyz").json()


def test_a_broken_engine_is_not_ready(swapped: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    model = swapped.app.state.service.first.model  # type: ignore[attr-defined]
    encode: Callable[..., object] = type(model).encode
    monkeypatch.setattr("services.embeddings.models.live.RECHECK", -1.0)
    monkeypatch.setattr(type(model), "encode", lambda *_: (_ for _ in ()).throw(RuntimeError("device lost")))
    broken = swapped.get("/readyz")
    assert broken.status_code == 503
    assert "device lost" in broken.json()["error"]["message"]
    monkeypatch.setattr(type(model), "encode", encode)
    assert swapped.get("/readyz").status_code == 200
