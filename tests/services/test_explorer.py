"""The routes of the page: who may use them, what they count, and what they keep."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from services.embeddings.app import create_app
from services.embeddings.edge import keys
from services.embeddings.explorer.overview import overview
from services.embeddings.explorer.plane import MOST, packed, principal
from services.embeddings.explorer.run import record, thinned
from services.embeddings.settings import ServiceSettings
from swav_platform.config import load
from swav_platform.errors import UserError
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import Health, write_health
from swav_platform.runs.metrics import MetricsWriter


@pytest.fixture
def place(stored: Path, tmp_path: Path) -> Path:
    """A copy of the set, to be written to."""
    return Path(shutil.copytree(stored, tmp_path / "set"))


@pytest.fixture
def client(package: Path, place: Path) -> Iterator[TestClient]:
    with TestClient(create_app(ServiceSettings(model=package, embeddings=place, threads=1))) as client:
        yield client


def test_numbers_of_clusters() -> None:
    found = overview(np.array([0, 0, 0, 0, 2, 2, -1]), np.array([1, 0, 1, 0, 0.5, 0.5, 9], np.float32), list("aabbccx"), 4)
    assert found.tightness[[0, 2]].tolist() == [0.5, 0.5]
    assert found.spread[[0, 2]].tolist() == [0.5, 0]
    assert found.entropy[[0, 2]].tolist() == [1, 0]
    assert np.isnan(found.tightness[[1, 3]]).all()
    assert found.order("entropy", np.array([4, 0, 2, 0])).tolist() == [0, 2, 1, 3]
    assert found.order("size", np.array([4, 0, 9, 0])).tolist() == [2, 0, 1, 3]


def held(vectors: np.ndarray) -> Any:
    """The vectors as a store has them."""
    return SimpleNamespace(with_vectors=lambda: np.arange(len(vectors)), vectors_of=lambda rows: vectors[rows])


def test_a_map_keeps_what_differs_most() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(3, 0.1, (50, 8)), rng.normal(-3, 0.1, (50, 8))]).astype(np.float32)
    xy = principal(held(vectors)).places(vectors)
    assert abs(xy[:50, 0].mean() - xy[50:, 0].mean()) > 10
    for few in (vectors[:1], np.ones((5, 1), np.float32)):
        assert principal(held(few)).places(few).shape == (len(few), 2)
    data = packed(xy, np.arange(100), np.arange(100) + 7)
    assert struct.unpack_from("<I", data) == (100,)
    assert np.frombuffer(data, "<u4", 100, 4 + 1200).tolist() == list(range(7, 107))
    many = np.zeros((MOST + 5, 2), np.float32)
    assert struct.unpack_from("<I", packed(many, many[:, 0], many[:, 0])) == (MOST,)


def test_a_long_curve_is_thinned() -> None:
    assert thinned([1.0, 2.0]) == [[0, 1.0], [1, 2.0]]
    found = thinned([float(i) for i in range(1000)])
    assert len(found) <= 400
    assert found[0] == [2, 1.0]
    assert found[-1][0] == 999


def test_facts(client: TestClient, bare: TestClient) -> None:
    facts = client.get("/v1/explorer").json()
    assert (facts["samples"], facts["clusters"], facts["excluded"]) == (40, 12, 0)
    assert facts["thumbnails"] is facts["writable"] is facts["map"] is True
    assert bare.get("/v1/explorer").json()["samples"] is None
    assert bare.get("/v1/explorer/clusters").json()["total"] == 12
    assert bare.get("/v1/explorer/map").status_code == 409


def test_notes_outlive_the_service(client: TestClient, package: Path, place: Path) -> None:
    assert client.put("/v1/explorer/clusters/3/name", json={"name": "Gänse"}).json() == {"cluster": 3, "name": "Gänse"}
    assert client.put("/v1/explorer/clusters/12/name", json={"name": "x"}).status_code == 404
    assert client.put("/v1/explorer/clusters/3/name", json={"name": "x" * 101}).status_code == 422
    # Key 0007 stands in both shards.
    assert client.post("/v1/explorer/exclusions", json={"samples": [7, 8, 999], "excluded": True}).json() == {"excluded": 2}
    assert client.get("/v1/explorer/exclusions").text == "a.tar\t0007\na.tar\t0008\n"
    with TestClient(create_app(ServiceSettings(model=package, embeddings=place, threads=1))) as again:
        facts = again.get("/v1/explorer").json()
        assert (facts["names"], facts["samples"]) == ({"3": "Gänse"}, 38)
        assert [c["cluster"] for c in again.get("/v1/explorer/clusters", params={"search": "gÄNS"}).json()["clusters"]] == [3]
        assert again.get("/v1/neighbors", params={"key": "0008"}).status_code == 404
        assert again.get("/v1/neighbors", params={"key": "0007"}).json()["item"]["shard"] == "b.tar"
        assert struct.unpack_from("<I", again.get("/v1/explorer/map").content) == (38,)
        again.post("/v1/explorer/exclusions", json={"samples": [7, 8], "excluded": False})
        assert again.get("/v1/models").json()["models"][0]["samples"] == 40
    assert not (place / "exclude.txt").exists(), "an empty list is no list"


def test_a_list_from_elsewhere_is_honoured(package: Path, place: Path) -> None:
    (place / "exclude.txt").write_text("/data/b.tar\t0007\n0030\nelsewhere.tar\tx\n")
    with TestClient(create_app(ServiceSettings(model=package, embeddings=place, threads=1))) as client:
        assert client.get("/v1/explorer").json()["excluded"] == 2
        client.post("/v1/explorer/exclusions", json={"samples": [20, 30], "excluded": False})
        assert client.get("/v1/explorer").json()["excluded"] == 0
    assert (place / "exclude.txt").read_text() == "elsewhere.tar\tx\n"


def test_damaged_notes_are_named(package: Path, place: Path) -> None:
    (place / "cluster-names.json").write_text("{")
    with pytest.raises(UserError, match=r"cluster-names\.json"):
        create_app(ServiceSettings(model=package, embeddings=place, threads=1))


def test_scopes(package: Path, place: Path, tmp_path: Path) -> None:
    made = {name: keys.make(name, scopes) for name, scopes in (("reader", ["search"]), ("viewer", ["search", "images"]))}
    keys.write(tmp_path / "keys.json", {key.id: key for _, key in made.values()})
    settings = ServiceSettings(model=package, embeddings=place, threads=1, keys=tmp_path / "keys.json")
    with TestClient(create_app(settings)) as client:
        reader, viewer = ({"authorization": f"Bearer {made[name][0]}"} for name in ("reader", "viewer"))
        assert client.get("/").status_code == client.get("/explorer/main.js").status_code == 200, "the page holds no data"
        assert client.get("/v1/explorer").status_code == 401
        for headers, shown in ((reader, False), (viewer, True)):
            assert client.get("/v1/explorer", headers=headers).json()["thumbnails"] is shown
            pictures = [x["thumbnail"] for x in client.get("/v1/explorer/items?samples=1,2", headers=headers).json()["items"]]
            assert [p is not None for p in pictures] == [shown, shown]
            denied = client.post("/v1/explorer/exclusions", json={"samples": [1], "excluded": True}, headers=headers)
            assert denied.status_code == 403


def test_one_cluster(client: TestClient) -> None:
    found = client.get("/v1/explorer/clusters/0").json()
    assert len(found["nearest"]) == 6
    assert len(found["members"]) == found["size"]
    assert all(item["cluster"] == 0 for item in found["members"])
    assert found["tightness"] is None or math.isfinite(found["tightness"])
    assert client.get("/v1/explorer/clusters?order=beauty").status_code == 422


def test_the_record_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "mine")
    (tmp_path / "mine" / "model").mkdir(parents=True)
    run.write(load(None, ["run.name=mine", "method.prototypes=8"]), index="i", index_digest="i", samples=1)
    metrics = MetricsWriter(run.path, 0)
    for step in range(3):
        metrics.append({"step": step, "loss": 2.0 - step})
    metrics.close()
    write_health(run.path, Health("learning", "the loss falls", step=2))
    for place in (run.path, run.package):
        found = record(place)
        assert (found["name"], found["loss"], found["chance"]) == ("mine", [[0, 2.0], [1, 1.0], [2, 0.0]], 2.07944)
        assert found["health"]["because"] == "the loss falls"
    assert record(tmp_path)["name"] is None
