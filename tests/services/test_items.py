"""Items that are added while a set is served, deletions, and search with conditions; in memory and in a neighbour index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from services.embeddings.answers import AddedAnswer, NeighborsAnswer, StoredNeighborsAnswer
from services.embeddings.app import create_app
from services.embeddings.search.items import Items
from services.embeddings.search.log import Item, Taken
from services.embeddings.settings import ServiceSettings
from swav_platform.data.sets.read import open_set
from swav_platform.errors import UserError
from swav_platform.neighbours.build import build
from tests.makers import smooth

Truth = tuple[np.ndarray, np.ndarray]


@pytest.fixture(params=["exact", "index"])
def client(request: pytest.FixtureRequest, package: Path, stored: Path, tmp_path: Path) -> Iterator[TestClient]:
    folder = Path(shutil.copytree(stored, tmp_path / "set"))
    if request.param == "index":
        build(open_set(folder), tmp_path / "set-neighbours")
    with serve(package, folder) as client:
        state = client.app.state.service.first  # type: ignore[attr-defined]
        assert (state.store.vectors is None) == (request.param == "index")
        yield client


def serve(package: Path, folder: Path, index: Path | None = None) -> TestClient:
    return TestClient(create_app(ServiceSettings(model=package, embeddings=folder, index=index, threads=1)))


def found(client: TestClient, **query: Any) -> list[dict[str, Any]]:
    """Neighbours of a picture that is not stored."""
    response = client.post(
        "/v1/neighbors", params={"k": 100, **query}, content=smooth(100), headers={"content-type": "image/png"}
    )
    assert response.status_code == 200, response.text
    return list(NeighborsAnswer.model_validate(response.json()).model_dump()["items"][0]["neighbors"])


def test_added_is_found_until_it_is_deleted(client: TestClient, package: Path, tmp_path: Path) -> None:
    files = [("images", ("new/a.jpg", smooth(100))), ("images", ("b", b"text")), ("images", ("c", smooth(101)))]
    answer = client.post("/v1/items?label=fresh", files=files)
    AddedAnswer.model_validate(answer.json())
    first, bad, second = answer.json()["items"]
    assert (first["id"], first["key"], second["id"]) == (40, "new/a.jpg", 41)
    assert bad["error"]["code"] == "not_an_image"

    near = found(client)
    assert len(near) == 42
    assert near[0] | {"thumbnail": None} == {
        "key": "new/a.jpg",
        "shard": "",
        "sample": 40,
        "cluster": first["cluster"],
        "score": pytest.approx(1, abs=1e-5),
        "label": "fresh",
        "thumbnail": None,
    }
    assert near[0]["thumbnail"].startswith("data:image/jpeg;base64,")
    assert {n["sample"] for n in found(client, label="fresh")} == {40, 41}
    assert [n["sample"] for n in found(client, key_prefix="new/")] == [40]

    by_id = StoredNeighborsAnswer.model_validate(client.get("/v1/neighbors?id=40&k=50").json())
    assert by_id.item.key == "new/a.jpg"
    assert sorted(n.sample for n in by_id.neighbors) == [n for n in range(42) if n != 40]
    assert client.get("/v1/neighbors?key=c").json()["item"]["sample"] == 41

    for number in (40, 3):
        assert client.delete(f"/v1/items/{number}").json()["id"] == number
        assert client.delete(f"/v1/items/{number}").status_code == 404
        assert client.get(f"/v1/neighbors?id={number}").status_code == 404
    shown = client.post("/v1/explorer/exclusions", json={"samples": [3], "excluded": False})  # can't bring it back
    assert shown.json() == {"excluded": 1}
    expected = sorted(set(range(42)) - {3, 40})
    assert sorted(n["sample"] for n in found(client)) == expected
    with serve(package, tmp_path / "set") as again:
        assert sorted(n["sample"] for n in found(again)) == expected
    assert (
        client.post("/v1/items?key=d", content=smooth(102), headers={"content-type": "image/png"}).json()["items"][0]["id"] == 42
    )


def test_conditions_pages_and_vectors(client: TestClient, truth: Truth) -> None:
    everything = found(client)
    assert [n["key"] for n in found(client, k=7, offset=5)] == [n["key"] for n in everything[5:12]]
    assert found(client, offset=100) == []
    cluster = everything[0]["cluster"]
    conditions: list[tuple[dict[str, Any], Any]] = [
        ({"label": "odd"}, lambda n: n["label"] == "odd"),
        ({"shard": "b.tar"}, lambda n: n["shard"] == "b.tar"),
        ({"key_prefix": "001"}, lambda n: n["key"].startswith("001")),
        ({"cluster": cluster}, lambda n: n["cluster"] == cluster),
        ({"cluster": cluster, "shard": "none"}, lambda n: False),
    ]
    for query, met in conditions:
        assert [n["sample"] for n in found(client, **query)] == [n["sample"] for n in everything if met(n)], query
    vector = {"vector": (truth[0][5] * 3).tolist(), "k": 4}
    response = client.post("/v1/neighbors", json=vector)
    assert response.status_code == 200, response.text
    [item] = response.json()["items"]
    assert item["neighbors"][0]["sample"] == 5
    assert item["neighbors"][0]["score"] == pytest.approx(1, abs=2e-3)
    assert [n["sample"] for n in item["neighbors"][1:]] == [
        n["sample"] for n in client.get("/v1/neighbors?id=5&k=3").json()["neighbors"]
    ]


@pytest.mark.parametrize("vector", [[], [0, 0], [1, 2], ["1"], [True], "1", [1e999], [10**400], [[1]], None])
def test_bad_vectors(service: TestClient, vector: Any) -> None:
    response = service.post("/v1/neighbors", content=json.dumps({"vector": vector}), headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("query", ["", "id=1&key=a", "id=-1", "id=99999999999999999999", "key=a&ofset=3"])
def test_bad_questions(service: TestClient, query: str) -> None:
    assert service.get(f"/v1/neighbors?{query}").status_code == 422


def test_items_need_keys_and_a_set(service: TestClient, bare: TestClient) -> None:
    image = {"content": smooth(1), "headers": {"content-type": "image/png"}}
    assert service.post("/v1/items", **image).json()["error"]["code"] == "invalid_request"  # type: ignore[arg-type]
    two = [("images", ("a", smooth(1))), ("images", ("b", smooth(2)))]
    assert service.post("/v1/items?key=a", files=two).json()["error"]["code"] == "invalid_request"
    assert bare.post("/v1/items?key=a", **image).json()["error"]["code"] == "no_embeddings"  # type: ignore[arg-type]
    assert service.delete("/v1/items/1000").json()["error"]["code"] == "no_such_sample"


def test_an_index_of_another_set_is_refused(package: Path, stored: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "set"))
    index = tmp_path / "set-neighbours"
    build(open_set(folder), index)
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps(manifest | {"set": "other"}))
    with pytest.raises(UserError, match=r"another set.*Or remove"):
        serve(package, folder)
    with pytest.raises(UserError, match="swav neighbours build"):
        serve(package, folder, tmp_path / "none")


def item(key: str) -> Item:
    vector = np.random.default_rng(list(key.encode())).normal(size=4).astype(np.float32)
    return Item(0, key, None, -1, -1.0, None, vector / np.linalg.norm(vector))


def opened(folder: Path) -> Items:
    return Items(folder / "set", "digest", 10, 4)


def log_of(folder: Path) -> Path:
    return max((folder / "set-items").glob("log-*"))


def test_a_torn_end_is_left_out_and_damage_is_told(tmp_path: Path) -> None:
    items = opened(tmp_path)
    assert items.add([item("a"), item("b")]) == [10, 11]
    whole = log_of(tmp_path).read_bytes()
    assert items.add([item("c")]) == [12]
    full = log_of(tmp_path).read_bytes()
    del items
    for tail in (full[len(whole) : -1], full[len(whole) : len(whole) + 5], bytes(30), full[len(whole) : -9] + bytes(9)):
        log_of(tmp_path).write_bytes(whole + tail)
        again = opened(tmp_path)
        assert (len(again), again.get(12)) == (2, None)
        assert again.add([item("d")]) == [12]
        del again
        assert len(opened(tmp_path)) == 3
    damaged = bytearray(full)
    damaged[len(whole) - 3] ^= 1
    log_of(tmp_path).write_bytes(damaged)
    with pytest.raises(UserError, match="damaged at byte"):
        opened(tmp_path)


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = opened(tmp_path)
    items.add([item("a")])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("services.embeddings.search.log.os.fsync", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                items.add([item("b")])
        with pytest.raises(OSError, match="No space"):
            items.delete(10)
        with pytest.raises(OSError, match="No space"):
            items.compact()
    assert len(items) == 1
    assert items.add([item("c")]) == [11]
    del items
    again = opened(tmp_path)
    assert [again.get(n) is not None for n in (10, 11, 12)] == [True, True, False]


def test_compaction_keeps_everything_and_ids(tmp_path: Path) -> None:
    items = opened(tmp_path)
    items.compact_at = 2000
    numbers = [items.add([item(f"k{n}")])[0] for n in range(60)]
    assert all(items.delete(number) for number in [*numbers[50:], 4])
    if items._compacting is not None:
        items._compacting.join()
    items.compact()
    assert len(list((tmp_path / "set-items").iterdir())) == 3  # part, log, lock
    del items
    again = opened(tmp_path)
    assert again.deleted == {4}
    for number in numbers[:50]:
        kept = again.get(number)
        assert kept is not None
        [[(nearest, score)]] = again.nearest(kept.vector[None], 1)
        assert (nearest.id, nearest.key, score) == (number, f"k{number - 10}", pytest.approx(1))
    assert again.add([item("new")]) == [70]


def test_one_writer_and_one_set(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.add([item("a")])
    with pytest.raises(Taken):
        second.add([item("b")])
    with pytest.raises(UserError, match="another version"):
        Items(tmp_path / "set", "other", 10, 4)
    del first
    assert second.add([item("b")]) == [11]
    assert len(second) == 2


@pytest.mark.stack
def test_killed_while_adding_deleting_and_compacting(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    from items import rounds  # type: ignore[import-not-found]

    figures = rounds(5, tmp_path / "set")
    assert (figures["lost"], figures["resurrected"], figures["wrong"]) == (0, 0, 0), figures
    assert figures["added"] > 20
    assert figures["deleted"] > 5
