"""A table of PostgreSQL in place of vectors in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from services.embeddings.errors import ServiceError
from swav_platform.errors import UserError
from swav_platform.neighbours.pgvector import PgNeighbours, Table
from swav_platform.neighbours.search import Where

T = TypeVar("T")


@dataclass(frozen=True)
class InPostgres:
    """A table with samples of a store of N samples. Each thread has a connection of its own, which is renewed when it breaks."""

    table: Table
    of_set: str
    samples: np.ndarray  # int64 [N], ascending: numbers of the store's samples
    has: np.ndarray  # bool [N]
    _own: threading.local = field(default_factory=threading.local)

    @classmethod
    def of(cls, table: Table, of_set: str, samples: np.ndarray) -> InPostgres:
        """Raises UserError if PostgreSQL does not answer or the table holds another set."""
        opened = PgNeighbours(table, of_set=of_set)
        try:
            return cls(table, of_set, samples, np.isin(samples, opened.numbers()))
        finally:
            opened.close()

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self._asked(lambda opened: opened.vectors(self.samples[rows]))

    def nearest(self, queries: np.ndarray, k: int, where: Where, hidden: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        without = [*where.without, *self.samples[hidden & self.has].tolist()]
        found = (
            self._asked(lambda opened: opened.search(queries, k, replace(where, without=without))) if k else [[] for _ in queries]
        )
        answers = []
        for hits in found:
            numbers = np.array([hit.sample for hit in hits], np.int64)
            rows = np.minimum(np.searchsorted(self.samples, numbers), len(self.samples) - 1)
            known = self.samples[rows] == numbers  # the table may have samples that were excluded since it was written
            answers.append((rows[known], np.array([hit.score for hit in hits], np.float32)[known]))
        return answers

    def _asked(self, ask: Callable[[PgNeighbours], T]) -> T:
        """Raises ServiceError 503 if PostgreSQL does not answer."""
        try:
            return ask(self._connection())
        except UserError:
            if (held := getattr(self._own, "held", None)) is not None:
                held.close()
            self._own.held = None
        try:
            return ask(self._connection())
        except UserError as error:
            raise ServiceError(503, "no_search", f"{error} Retry when it does.", headers={"Retry-After": "5"}) from error

    def _connection(self) -> PgNeighbours:
        if getattr(self._own, "held", None) is None:
            self._own.held = PgNeighbours(self.table, of_set=self.of_set)
        held: PgNeighbours = self._own.held
        return held
