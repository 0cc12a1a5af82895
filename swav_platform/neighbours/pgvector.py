"""The same search on PostgreSQL with the extension pgvector: for sets that other programs query too. Needs the extra `pgvector`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
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


SCHEME = "pgvector://"
_TABLE = "swav"


@dataclass(frozen=True)
class Table:
    """Where a set is: url as PostgreSQL takes it (postgresql://USER:PASSWORD@HOST/DATABASE), and the name of the table."""

    url: str
    name: str = _TABLE


def table_of(place: str) -> Table:
    """The table that pgvector://USER:PASSWORD@HOST/DATABASE#TABLE means; without #TABLE, `swav`."""
    url, _, name = place.partition("#")
    return Table(f"postgresql://{url.removeprefix(SCHEME)}", name or _TABLE)


class PgNeighbours:
    """A `Neighbours` in a table of PostgreSQL. Belongs to one thread. Its methods raise UserError if the server does not answer."""

    def __init__(self, table: Table, *, of_set: str | None = None, excluded: Exclusions | None = None) -> None:
        """Raises UserError if the server does not answer, or if the table is missing or holds another set."""
        self._connection, self._table, self._named = _connected(table.url), _quoted(table.name), table.name
        self._connection.autocommit = True  # an open transaction would keep others from replacing the table
        self._of_set = of_set
        try:
            self.manifest = self._told()
            self.samples, self.dim = int(self.manifest["samples"]), int(self.manifest["dim"])
            self._banned = self._matching(excluded)
        except UserError:
            self.close()
            raise

    def search(self, queries: np.ndarray, k: int, where: Where = ANY) -> list[list[Hit]]:
        self._told()
        conditions, values = self._conditions(where)
        statement = (
            f"SELECT {_COLUMNS}, -(embedding <#> %s::halfvec) FROM {self._table} WHERE {conditions} "
            f"ORDER BY embedding <#> %s::halfvec LIMIT %s"
        )
        found = []
        with _answering(), self._connection.cursor() as cursor:
            cursor.execute(f"SET hnsw.ef_search = {max(_EFFORT, min(4 * k, 1000))}; SET hnsw.iterative_scan = strict_order")
            for query in queries:
                text = _text(query)
                cursor.execute(statement, (text, *values, text, k))
                lines = cursor.fetchall()
                if len(lines) < min(k, self.samples):  # few meet the conditions; the index gives up before it has found them
                    cursor.execute("SET enable_indexscan = off")
                    cursor.execute(statement, (text, *values, text, k))
                    lines = cursor.fetchall()
                    cursor.execute("SET enable_indexscan = on")
                found.append([Hit(*line) for line in lines])
        return found

    def vector(self, sample: int) -> np.ndarray:
        found: np.ndarray = self.vectors(np.array([sample]))[0]
        return found

    def vectors(self, samples: np.ndarray) -> np.ndarray:
        """float32 [m, D] of unit length of int64 [m]. Raises KeyError as `vector`."""
        self._told()
        lines = self._all(f"SELECT sample, embedding::text FROM {self._table} WHERE sample = ANY(%s)", samples.tolist())
        found = {sample: text for sample, text in lines if sample not in self._banned}
        return unit(np.array([json.loads(found[sample]) for sample in samples.tolist()], np.float32).reshape(-1, self.dim))

    def numbers(self) -> np.ndarray:
        """int64 [n], ascending: the samples that it has."""
        return np.array([sample for (sample,) in self._all(f"SELECT sample FROM {self._table} ORDER BY sample")], np.int64)

    def close(self) -> None:
        self._connection.close()

    def _told(self) -> dict[str, Any]:
        """What the table says of its set, which another program may have replaced."""
        [(text,)] = self._all("SELECT obj_description(to_regclass(%s))", self._table)
        if text is None:
            raise UsageError(f"There is no set in the table {self._named}: write it with `swav neighbours build --to {SCHEME}…`.")
        told: dict[str, Any] = json.loads(text)
        if self._of_set is not None and told["set"] != self._of_set:
            raise UserError(f"The table {self._named} holds another set: write it again with `swav neighbours build`.")
        return told

    def _all(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with _answering(), self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            lines: list[tuple[Any, ...]] = cursor.fetchall()
        return lines

    def _matching(self, excluded: Exclusions | None) -> set[int]:
        """The samples that are excluded now."""
        if excluded is None or not len(excluded):
            return set()
        lines = self._all(f"SELECT sample, shard, key FROM {self._table}")
        return {sample for sample, shard, key in lines if excluded.may_cover(shard, key)}

    def _conditions(self, where: Where) -> tuple[str, list[Any]]:
        found, values = ["true"], list[Any]()
        if where.cluster is not None:
            found, values = [*found, "cluster = %s"], [*values, where.cluster]
        if where.label is not None:
            found, values = [*found, "label = %s"], [*values, where.label]
        if where.shard is not None:
            lines = self._all(f"SELECT DISTINCT shard FROM {self._table}")
            shards = [shard for (shard,) in lines if is_end_of(where.shard, shard)]
            found, values = [*found, "shard = ANY(%s)"], [*values, shards]
        if where.key_prefix is not None:
            found, values = [*found, "starts_with(key, %s)"], [*values, where.key_prefix]
        if without := {*where.without, *self._banned}:
            found, values = [*found, "sample <> ALL(%s)"], [*values, sorted(without)]
        return " AND ".join(found), values


def store_in_postgres(embeddings: EmbeddingSet, table: Table, excluded: Exclusions | None = None) -> int:
    """Writes a set into a table with an HNSW index, and replaces an older one, in one transaction. Returns the number of samples.

    Raises UserError if the server does not answer, lacks the extension, or the set has more dimensions than pgvector can index.
    """
    if embeddings.dim > _DIMENSIONS:
        raise UserError(f"pgvector indexes up to {_DIMENSIONS} dimensions, and this set has {embeddings.dim}.")
    name, count = _quoted(table.name), 0
    with contextlib.closing(_connected(table.url)) as connection, _answering(), connection, connection.cursor() as cursor:
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


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turns errors of the server into UserError."""
    import psycopg2

    try:
        yield
    except psycopg2.Error as error:
        raise UserError(f"PostgreSQL does not answer ({_reason(error)}). Check the address and that the server runs.") from error


def _connected(url: str) -> Any:
    try:
        import psycopg2
    except ImportError:
        raise UserError("The search on PostgreSQL needs more packages: pip install 'swav-platform[pgvector]'.") from None
    with _answering():
        return psycopg2.connect(url)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
