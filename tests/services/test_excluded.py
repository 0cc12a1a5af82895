"""What is excluded or deleted disappears everywhere, and items are everywhere until then."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from services.embeddings.app import create_app
from services.embeddings.settings import ServiceSettings
from swav_platform.cli.main import run
from swav_platform.config import Data, ImagePolicy
from swav_platform.data.datasets import plan_of
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.evaluation.embed import embed, embed_job
from tests.makers import smooth, write_tar

SAMPLES = 20


@pytest.fixture(params=["no map", "map", "map of another program"])
def client(request: pytest.FixtureRequest, package: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A set of a real index, served, in `tmp_path`."""
    write_tar(tmp_path / "a.tar", [(f"{n:03d}.jpg", smooth(n)) for n in range(SAMPLES)])
    build_index([str(tmp_path / "a.tar")], tmp_path / "index")
    embed(embed_job(package, Index.open(tmp_path / "index"), tmp_path / "set", ImagePolicy(), thumbnails=True))
    if request.param != "no map":
        assert run(["neighbours", "map", str(tmp_path / "set")]) == 0
    if request.param == "map of another program":
        import pyarrow.parquet as pq

        table = pq.read_table(tmp_path / "set" / "map.parquet").select(["sample", "x", "y"])
        pq.write_table(table.replace_schema_metadata(None), tmp_path / "set" / "map.parquet")
    with serve(package, tmp_path) as client:
        yield client


def serve(package: Path, folder: Path) -> TestClient:
    return TestClient(create_app(ServiceSettings(model=package, embeddings=folder / "set", threads=1)))


def add(client: TestClient, key: str, image: bytes) -> dict[str, Any]:
    headers = {"content-type": "image/jpeg"}
    return dict(client.post("/v1/items", params={"key": key}, content=image, headers=headers).json()["items"][0])


def points(client: TestClient) -> dict[int, np.ndarray]:
    """Places on the map, by number."""
    data = client.get("/v1/explorer/map").content
    [n] = struct.unpack_from("<I", data)
    xy = np.frombuffer(data, "<f4", 2 * n, 4).reshape(n, 2)
    return dict(zip(np.frombuffer(data, "<u4", n, 4 + 12 * n).tolist(), xy, strict=True))


def seen(client: TestClient, number: int, cluster: int) -> dict[str, bool]:
    """Where a sample or item is found, and whether its picture is shown anywhere."""
    near = client.post("/v1/neighbors", params={"k": 100}, content=smooth(1), headers={"content-type": "image/jpeg"}).json()[
        "items"
    ][0]["neighbors"]
    one = client.get(f"/v1/clusters/{cluster}?limit=200").json()
    sheets = client.get("/v1/explorer/clusters?exemplars=24&limit=200").json()["clusters"]
    [items] = client.get(f"/v1/explorer/items?samples={number}").json()["items"] or [{"thumbnail": None}]
    assert one["size"] == len(one["members"])
    return {
        "neighbours": number in {n["sample"] for n in near},
        "neighbours of a sample": number
        in {n["sample"] for n in client.get("/v1/explorer/neighbors?sample=0").json()["neighbors"]},
        "exemplars": number in {n["sample"] for n in one["members"]},
        "sheets": number in {n["sample"] for sheet in sheets for n in sheet["exemplars"]},
        "map": number in points(client),
        "thumbnail": items["thumbnail"] is not None,
        "by its number": client.get(f"/v1/neighbors?id={number}").status_code == 200,
    }


def test_an_excluded_sample_disappears(client: TestClient, package: Path, tmp_path: Path) -> None:
    """From neighbours, exemplars, thumbnails, the map and the next plan; so does an added item, which is in no plan."""
    number = 7
    cluster = client.get(f"/v1/neighbors?id={number}").json()["item"]["cluster"]
    added = add(client, "new/photo.jpg", smooth(number))
    assert (added["id"], added["cluster"]) == (SAMPLES, cluster)
    everywhere = dict.fromkeys(seen(client, number, cluster), True)
    nowhere = dict.fromkeys(everywhere, False)
    assert seen(client, number, cluster) == everywhere
    assert seen(client, SAMPLES, cluster) == everywhere
    size = client.get(f"/v1/clusters/{cluster}").json()["size"]
    assert client.get("/v1/explorer").json()["samples"] == SAMPLES + 1

    for sample in (number, SAMPLES):
        client.post("/v1/explorer/exclusions", json={"samples": [sample], "excluded": True})
        assert seen(client, sample, cluster) == nowhere
    assert client.get(f"/v1/clusters/{cluster}").json()["size"] == size - 2
    assert [c["size"] for c in client.get("/v1/clusters").json()["clusters"] if c["cluster"] == cluster] == [size - 2]
    assert client.get("/v1/explorer").json() | {"samples": SAMPLES - 1, "excluded": 2} == client.get("/v1/explorer").json()
    lists = str(tmp_path / "set" / "exclude.txt")
    assert Path(lists).read_text() == "a.tar\t007\nset-items\tnew/photo.jpg\n"
    with serve(package, tmp_path) as again:
        for sample in (number, SAMPLES):
            assert seen(again, sample, cluster) == nowhere

    assert run(["index", str(tmp_path / "a.tar"), "--out", str(tmp_path / "index"), "--exclude", lists]) == 0
    index = Index.open(tmp_path / "index")
    plan = plan_of(index, Data(row_size=4, block=4, window=2), 0)
    planned = {index.lines([int(n)])[0].key for row in range(-(-index.samples // 4)) for n in plan.row(row).samples}
    assert planned == {f"{n:03d}" for n in range(SAMPLES)} - {"007"}

    client.post("/v1/explorer/exclusions", json={"samples": [SAMPLES], "excluded": False})
    assert seen(client, SAMPLES, cluster) == everywhere


def test_items_lie_beside_what_they_look_like_and_vanish(client: TestClient, package: Path, tmp_path: Path) -> None:
    added = add(client, "copy", smooth(5))
    places = points(client)
    others = [np.abs(places[number] - places[added["id"]]).max() for number in range(SAMPLES)]
    assert np.argsort(others)[0] == 5 or others[5] < 0.5
    with serve(package, tmp_path) as again:
        np.testing.assert_allclose(points(again)[added["id"]], places[added["id"]], atol=1e-6)
    client.delete(f"/v1/items/{added['id']}")
    assert not any(seen(client, added["id"], added["cluster"]).values())


def test_a_map_that_takes_long_is_awaited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.embeddings.explorer.routes.PATIENCE", 0.0)
    answers = [client.get("/v1/explorer/map") for _ in range(1)]
    while answers[-1].status_code == 202:
        assert answers[-1].json() == {"state": "computing"}
        answers.append(client.get("/v1/explorer/map"))
    assert answers[-1].content[:4] == struct.pack("<I", SAMPLES)
