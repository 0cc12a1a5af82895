"""The same search on PostgreSQL with the extension pgvector: for sets that other programs query too. Needs the extra `pgvector`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.index.names import is_end_of
from swav_platform.data.sets.read import EmbeddingSet, unit_vectors
from swav_platform.errors import UsageError, UserError
from swav_platform.neighbours.search import ANY, Hit, Where
from swav_platform.neighbours.stored import unit

_DIMENSIONS = 4000  # that pgvector indexes at most, as halfvec
_COLUMNS = "sample, key, shard, label, cluster"
_EFFORT = 200  # hnsw.ef_search: candidates of a search


class PgNeighbours:
    """A `Neighbours` in a table of PostgreSQL. Belongs to one thread."""

    def __init__(self, url: str, table: str, *, of_set: str | None = None, excluded: Exclusions | None = None) -> None:
        """Raises UserError if the server does not answer, or if the table is missing or holds another set."""
        self._connection, self._table = _connected(url), _quoted(table)
        told = self._one("SELECT obj_description(to_regclass(%s))", table)
        if told is None:
            self.close()
            raise UsageError(f"There is no set in the table {table}: write it with store_in_postgres.")
        self.manifest: dict[str, Any] = json.loads(told)
        if of_set is not None and self.manifest["set"] != of_set:
            self.close()
            raise UserError(f"The table {table} holds another set: write it again with store_in_postgres.")
        self.samples, self.dim = int(self.manifest["samples"]), int(self.manifest["dim"])
        self._banned = self._matching(excluded)

    def search(self, queries: np.ndarray, k: int, where: Where = ANY) -> list[list[Hit]]:
        conditions, values = self._conditions(where)
        statement = (
            f"SELECT {_COLUMNS}, -(embedding <#> %s::halfvec) FROM {self._table} WHERE {conditions} "
            f"ORDER BY embedding <#> %s::halfvec LIMIT %s"
        )
        found = []
        with self._connection.cursor() as cursor:
            cursor.execute(f"SET hnsw.ef_search = {max(_EFFORT, min(4 * k, 1000))}; SET hnsw.iterative_scan = strict_order")
            for query in queries:
                text = _text(query)
                cursor.execute(statement, (text, *values, text, k))
                found.append([Hit(*line) for line in cursor.fetchall()])
        return found

    def vector(self, sample: int) -> np.ndarray:
        text = (
            None if sample in self._banned else self._one(f"SELECT embedding::text FROM {self._table} WHERE sample = %s", sample)
        )
        if text is None:
            raise KeyError(sample)
        return unit(np.array(json.loads(text), np.float32))

    def close(self) -> None:
        self._connection.close()

    def _one(self, statement: str, value: Any) -> Any:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, (value,))
            line = cursor.fetchone()
        return None if line is None else line[0]

    def _matching(self, excluded: Exclusions | None) -> set[int]:
        """The samples that are excluded now."""
        if excluded is None or not len(excluded):
            return set()
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT sample, shard, key FROM {self._table}")
            return {sample for sample, shard, key in cursor if excluded.may_cover(shard, key)}

    def _conditions(self, where: Where) -> tuple[str, list[Any]]:
        found, values = ["true"], list[Any]()
        if where.cluster is not None:
            found, values = [*found, "cluster = %s"], [*values, where.cluster]
        if where.label is not None:
            found, values = [*found, "label = %s"], [*values, where.label]
        if where.shard is not None:
            with self._connection.cursor() as cursor:
                cursor.execute(f"SELECT DISTINCT shard FROM {self._table}")
                shards = [shard for (shard,) in cursor if is_end_of(where.shard, shard)]
            found, values = [*found, "shard = ANY(%s)"], [*values, shards]
        if where.key_prefix is not None:
            found, values = [*found, "starts_with(key, %s)"], [*values, where.key_prefix]
        if without := {*where.without, *self._banned}:
            found, values = [*found, "sample <> ALL(%s)"], [*values, sorted(without)]
        return " AND ".join(found), values


def store_in_postgres(embeddings: EmbeddingSet, url: str, table: str, excluded: Exclusions | None = None) -> int:
    """Writes a set into a table with an HNSW index, and replaces an older one, in one transaction. Returns the number of samples.

    Raises UserError if the server does not answer, lacks the extension, or the set has more dimensions than pgvector can index.
    """
    if embeddings.dim > _DIMENSIONS:
        raise UserError(f"pgvector indexes up to {_DIMENSIONS} dimensions, and this set has {embeddings.dim}.")
    name, count = _quoted(table), 0
    with contextlib.closing(_connected(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        cursor.execute(f"DROP TABLE IF EXISTS {name}")
        cursor.execute(
            f"CREATE TABLE {name} (sample bigint PRIMARY KEY, key text NOT NULL, shard text NOT NULL, label text, "
            f"cluster int NOT NULL, embedding halfvec({embeddings.dim}) NOT NULL)"
        )
        for lines in _lines(embeddings, excluded):
            cursor.executemany(f"INSERT INTO {name} VALUES (%s, %s, %s, %s, %s, %s)", lines)
            count += len(lines)
        cursor.execute(f"CREATE INDEX ON {name} USING hnsw (embedding halfvec_ip_ops)")
        told = {"set": embeddings.digest, "model": embeddings.model, "samples": count, "dim": embeddings.dim}
        cursor.execute(f"COMMENT ON TABLE {name} IS %s", (json.dumps(told),))
    return count


def _lines(embeddings: EmbeddingSet, excluded: Exclusions | None) -> Iterator[list[tuple[Any, ...]]]:
    for batch in embeddings.lines(["sample", "key", "shard", "label", "cluster", "embedding", "scale"], excluded):
        columns = [batch[name].to_pylist() for name in ("sample", "key", "shard", "label", "cluster")]
        yield [(*line, _text(vector)) for *line, vector in zip(*columns, unit_vectors(batch), strict=True)]


def _text(vector: np.ndarray) -> str:
    return "[" + ",".join(f"{value:.7g}" for value in vector.tolist()) + "]"


def _quoted(table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))


def _connected(url: str) -> Any:
    try:
        import psycopg2
    except ImportError:
        raise UserError("The search on PostgreSQL needs more packages: pip install 'swav-platform[pgvector]'.") from None
    try:
        connection = psycopg2.connect(url)
    except psycopg2.OperationalError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"PostgreSQL does not answer ({reason}). Check the address and that the server runs.") from error
    return connection
