"""Searches a neighbour index: the quantised lists near a query, then exact cosines of the best candidates."""

from __future__ import annotations

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from swav_platform.data.index.exclusions import Exclusions
from swav_platform.errors import UsageError, UserError
from swav_platform.neighbours.conditions import masks
from swav_platform.neighbours.exact import exact_search
from swav_platform.neighbours.search import ANY, Hit, Where
from swav_platform.neighbours.stored import FORMAT, LISTS, MANIFEST, StoredVectors, open_rows

log = logging.getLogger("swav")

FEW = 20_000
"""Rows that meet a condition up to which all of them are compared."""

_AT_ONCE = 2048  # vectors whose exact cosine is computed
_MORE = 16  # candidates at least, besides k × the manifest's `candidates`


class NeighbourIndex:
    """A `Neighbours` on the disk of this machine. Safe for concurrent searches.

    banned: bool [n], the excluded rows; None if there are none.
    manifest: `set` and `model` (digests), `samples`, `dim`, `lists`, `codec`, `probes`, `candidates`, `exhaustive`, `recall_at_10`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], excluded: Exclusions | None = None) -> None:
        self.folder, self.manifest = folder, manifest
        self.samples, self.dim = int(manifest["samples"]), int(manifest["dim"])
        self.vectors = StoredVectors(folder, self.dim)
        self.rows = open_rows(folder)
        self._lists: Any = faiss.read_index(str(folder / LISTS), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        self.banned = _banned(self.rows, excluded)

    def search(self, queries: np.ndarray, k: int, where: Where = ANY) -> list[list[Hit]]:
        scores, rows = self.search_rows(queries, k, self.allowed(where))
        return [self.hits(of_row[of_row >= 0], of_score) for of_row, of_score in zip(rows, scores, strict=True)]

    def vector(self, sample: int) -> np.ndarray:
        found: np.ndarray = self.vectors.rows(np.array([self.row_of(sample)]))[0]
        return found

    def close(self) -> None:
        self._lists = None

    def row_of(self, sample: int) -> int:
        """Raises KeyError for a sample that is unknown or excluded."""
        numbers, order = self._by_sample
        at = int(np.searchsorted(numbers, sample))
        row = int(order[at]) if at < len(numbers) and numbers[at] == sample else -1
        if row < 0 or (self.banned is not None and self.banned[row]):
            raise KeyError(sample)
        return row

    def hits(self, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
        told = self.rows.take(pa.array(rows)).select(["sample", "key", "shard", "label", "cluster"]).to_pylist()
        return [Hit(**line, score=float(score)) for line, score in zip(told, scores, strict=False)]

    def search_rows(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 [q, k] and rows int64 [q, k], best first; -1 where there are fewer. allowed: bool [n]; None: all rows."""
        queries = np.ascontiguousarray(queries, np.float32)
        if allowed is not None and (count := int(np.count_nonzero(allowed))) <= FEW:
            return _padded(*self._among(queries, np.flatnonzero(allowed), min(k, count)), k)
        if allowed is None and self.manifest["exhaustive"]:
            return exact_search(self.vectors, queries, k)
        scores, rows = self.probed(queries, k, self.manifest["probes"], allowed)
        if (short := (rows < 0).any(axis=1)).any() and k <= self.samples:  # the lists that were searched hold too few
            scores[short], rows[short] = self.probed(queries[short], k, self._lists.nlist, allowed)
        return scores, rows

    def probed(
        self, queries: np.ndarray, k: int, probes: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As search_rows, in the `probes` lists that are nearest to each query."""
        untyped: Any = faiss  # its stubs describe the constructors of C++
        options: dict[str, Any] = {"nprobe": min(probes, self._lists.nlist)}
        if allowed is not None:
            options["sel"] = untyped.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        parameters = untyped.SearchParametersIVF(**options)
        wanted = min(max(k * self.manifest["candidates"], k + _MORE), self.samples)
        _, rows = self._lists.search(queries, wanted, params=parameters)
        scores = self._exact(queries, rows)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return _padded(np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1), k)

    def _exact(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Cosines float32 [q, c] of rows [q, c]; -2 where there is none. Few at a time: their vectors then stay in the cache."""
        scores, at_once = np.empty(rows.shape, np.float32), max(1, _AT_ONCE // rows.shape[1])
        for first in range(0, len(rows), at_once):
            some = slice(first, first + at_once)
            values = self.vectors.rows(np.maximum(rows[some], 0).ravel(), release=False).reshape(*rows[some].shape, self.dim)
            scores[some] = np.einsum("qd,qcd->qc", queries[some], values)
        self.vectors.release()
        scores[rows < 0] = -2.0
        return scores

    def allowed(self, where: Where) -> np.ndarray | None:
        """bool [n]: rows that meet the conditions and are not excluded; None for all rows."""
        found = None if self.banned is None else ~self.banned
        for mask in masks(self.rows, where):
            found = mask if found is None else found & mask
        return found

    def _among(self, queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if not k:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        scores, at = faiss.knn(queries, self.vectors.rows(rows), k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, rows[at]

    @cached_property
    def _by_sample(self) -> tuple[np.ndarray, np.ndarray]:
        numbers = self.rows["sample"].to_numpy()
        order = np.argsort(numbers, kind="stable")
        return numbers[order], order


def open_neighbours(folder: Path, *, of_set: str | None = None, excluded: Exclusions | None = None) -> NeighbourIndex:
    """Opens an index. of_set: the digest of the set that it must be made from.

    Raises UsageError if there is none, and UserError if it is damaged or made from another set.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise UsageError(f"There is no neighbour index in {folder}: make it with `swav neighbours build SET`.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"The neighbour index in {folder} can't be read ({error}): build it again.") from error
    if manifest.get("format") != FORMAT:
        raise UserError(f"The neighbour index in {folder} has a format that this version does not read: build it again.")
    if of_set is not None and manifest["set"] != of_set:
        raise UserError(
            f"The neighbour index in {folder} was made from another set: build it again with `swav neighbours build`."
        )
    try:
        return NeighbourIndex(folder, manifest, excluded)
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The neighbour index in {folder} is damaged ({reason}): build it again.") from error


def _banned(rows: pa.Table, excluded: Exclusions | None) -> np.ndarray | None:
    if excluded is None or not len(excluded):
        return None
    names = zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True)
    return np.array([excluded.may_cover(shard, key) for shard, key in names], bool)


def _padded(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    missing = ((0, 0), (0, k - scores.shape[1]))
    return np.pad(scores, missing, constant_values=-2.0), np.pad(rows, missing, constant_values=-1)
