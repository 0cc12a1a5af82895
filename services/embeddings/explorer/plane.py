"""The 2-D map of a set: the file of `swav neighbours map`, else the two main directions of its vectors."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.errors import UserError
from swav_platform.neighbours.axes import two_axes

FILE = "map.parquet"
MOST = 200_000  # points that a page is sent
_FITTED = 20_000  # vectors from which the directions are computed


def positions(folder: Path | None, samples: np.ndarray, vectors: np.ndarray | None) -> np.ndarray:
    """float32 [N, 2] in -1 … 1 of the samples (ascending int64 [N]); NaN for those that the file does not have,
    and for all without a file and vectors.

    Raises UserError for a file that cannot be read.
    """
    if folder is None or not (folder / FILE).is_file():
        return np.full((len(samples), 2), np.nan, np.float32) if vectors is None else _scaled(principal(vectors))
    try:
        table = pq.read_table(folder / FILE, columns=["sample", "x", "y"])
        number, xy = table["sample"].to_numpy(), np.stack([table["x"].to_numpy(), table["y"].to_numpy()], 1)
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / FILE} can't be read as a map ({reason}). Run `swav neighbours map` again.") from error
    placed = np.full((len(samples), 2), np.nan, np.float32)
    at = np.searchsorted(samples, number)
    known = (at < len(samples)) & (samples[np.minimum(at, len(samples) - 1)] == number)
    placed[at[known]] = xy[known]
    return _scaled(placed)


def principal(vectors: np.ndarray) -> np.ndarray:
    """float32 [N, 2]: coordinates along the two directions of largest variance. vectors: float32 [N, D]."""
    step = max(1, len(vectors) // _FITTED)
    some = vectors[::step].astype(np.float64)
    mean = some.mean(0)
    two, _ = two_axes((some - mean).T @ (some - mean))
    found = (vectors - mean.astype(np.float32)) @ two.astype(np.float32)
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def _scaled(xy: np.ndarray) -> np.ndarray:
    """Into -1 … 1, by the same factor in both directions."""
    if not np.isfinite(xy).any():
        return xy.astype(np.float32)
    low, high = np.nanmin(xy, 0), np.nanmax(xy, 0)
    scaled: np.ndarray = (xy - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-12)
    return scaled.astype(np.float32)


def packed(xy: np.ndarray, clusters: np.ndarray, samples: np.ndarray) -> bytes:
    """Little-endian: uint32 n, then float32 [n, 2], int32 [n] clusters, uint32 [n] samples. At most `MOST`, evenly chosen."""
    kept = np.flatnonzero(np.isfinite(xy).all(1))
    kept = kept[np.linspace(0, len(kept) - 1, MOST).astype(np.int64)] if len(kept) > MOST else kept
    parts = (xy[kept].astype("<f4"), clusters[kept].astype("<i4"), samples[kept].astype("<u4"))
    return struct.pack("<I", len(kept)) + b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
