"""The 2-D map of a set: the file of `swav neighbours map`, else the two main directions of its vectors."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.embeddings.store import Store
from swav_platform.errors import UserError
from swav_platform.neighbours.axes import Axes, axes_of, two_axes

FILE = "map.parquet"
MOST = 200_000  # points that a page is sent
_FITTED = 20_000  # vectors from which the directions are computed
_BLOCK = 16_384  # vectors in memory
_AROUND = 5  # nearest samples; on a map without directions, an item is in their middle


@dataclass(frozen=True)
class Plane:
    """Where samples and items are. middle, half: what becomes 0 and 1 of the page's coordinates."""

    xy: np.ndarray  # float32 [N, 2] in -1 … 1; NaN for samples without a place
    axes: Axes | None  # None: a map that was made elsewhere
    middle: np.ndarray  # float32 [2]
    half: float

    def places(self, store: Store, vectors: np.ndarray) -> np.ndarray:
        """float32 [m, 2] of vectors [m, D] that are not stored samples; NaN for those without a place."""
        if self.axes is not None:
            found: np.ndarray = (self.axes.places(vectors) - self.middle) / self.half
            return found.astype(np.float32)
        near = [self.xy[rows] for rows, _ in store.nearest(vectors, _AROUND)]
        known = [placed[np.isfinite(placed).all(axis=1)] for placed in near]
        return np.array([placed.mean(axis=0) if len(placed) else (np.nan, np.nan) for placed in known], np.float32)


class Later:
    """A plane that a thread computes from the first question on, so that neither the start nor a request waits for it."""

    def __init__(self, make: Callable[[], Plane]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: Future[Plane] | None = None

    def get(self, seconds: float) -> Plane | None:
        """None if it takes longer. Raises what `make` raised; the next question tries again."""
        with self._lock:
            if self._made is None:
                self._made = Future()
                threading.Thread(target=self._run, args=(self._made,), name="map", daemon=True).start()
            made = self._made
        try:
            return made.result(seconds)
        except TimeoutError:
            if made.done():
                raise
            return None

    def _run(self, made: Future[Plane]) -> None:
        try:
            made.set_result(self._make())
        except BaseException as error:
            with self._lock:
                self._made = None
            made.set_exception(error)


def plane(folder: Path | None, samples: np.ndarray, store: Store) -> Plane:
    """The map of a store with these samples (ascending int64 [N]). Raises UserError for a file that cannot be read."""
    if folder is None or not (folder / FILE).is_file():
        own = principal(store)
        return _scaled(_placed(store, own), own)
    try:
        table = pq.read_table(folder / FILE, columns=["sample", "x", "y"])
        number, xy = table["sample"].to_numpy(), np.stack([table["x"].to_numpy(), table["y"].to_numpy()], 1)
        axes = axes_of(table.schema.metadata)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / FILE} can't be read as a map ({reason}). Run `swav neighbours map` again.") from error
    placed = np.full((len(samples), 2), np.nan, np.float32)
    at = np.searchsorted(samples, number)
    known = (at < len(samples)) & (samples[np.minimum(at, len(samples) - 1)] == number)
    placed[at[known]] = xy[known]
    return _scaled(placed, axes)


def principal(store: Store) -> Axes:
    """The directions of largest variance, from evenly chosen vectors."""
    rows = store.with_vectors()
    some = store.vectors_of(rows[:: max(1, len(rows) // _FITTED)]).astype(np.float64)
    mean = some.mean(axis=0)
    two, _ = two_axes((some - mean).T @ (some - mean))
    return Axes(mean.astype(np.float32), two.astype(np.float32))


def _placed(store: Store, axes: Axes) -> np.ndarray:
    found = np.full((len(store.clusters), 2), np.nan, np.float32)
    rows = store.with_vectors()
    for first in range(0, len(rows), _BLOCK):
        found[rows[first : first + _BLOCK]] = axes.places(store.vectors_of(rows[first : first + _BLOCK]))
    return found


def _scaled(xy: np.ndarray, axes: Axes | None) -> Plane:
    """Into -1 … 1, by the same factor in both directions."""
    if not np.isfinite(xy).any():
        return Plane(xy.astype(np.float32), axes, np.zeros(2, np.float32), 1.0)
    low, high = np.nanmin(xy, 0), np.nanmax(xy, 0)
    middle, half = (low + high) / 2, max(float((high - low).max()) / 2, 1e-12)
    return Plane(((xy - middle) / half).astype(np.float32), axes, middle.astype(np.float32), half)


def packed(xy: np.ndarray, clusters: np.ndarray, samples: np.ndarray) -> bytes:
    """Little-endian: uint32 n, then float32 [n, 2], int32 [n] clusters, uint32 [n] samples. At most `MOST`, evenly chosen."""
    kept = np.flatnonzero(np.isfinite(xy).all(1))
    kept = kept[np.linspace(0, len(kept) - 1, MOST).astype(np.int64)] if len(kept) > MOST else kept
    parts = (xy[kept].astype("<f4"), clusters[kept].astype("<i4"), samples[kept].astype("<u4"))
    return struct.pack("<I", len(kept)) + b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
