"""Steps that the three image routes share: encode the items, build one result for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from services.embeddings.engine import Engine
from services.embeddings.errors import Fault, ServiceError
from services.embeddings.inputs import Item
from swav_platform.models.inference import Encoded

Results = list[Encoded | Fault]


async def encode(engine: Engine, items: Sequence[Item]) -> Results:
    """Vectors or faults, in the order of the items. If the only image of a request is bad, the request fails."""
    encoded = iter(await engine.encode([item.data for item in items if item.fault is None and item.vector is None]))
    results = [item.fault or (next(encoded) if item.vector is None else Encoded(item.vector, item.vector[:0])) for item in items]
    if len(results) == 1 and isinstance(results[0], Fault):
        fault = results[0]
        status = {"internal_error": 500, "too_many_bytes": 413}.get(fault.code, 422)
        raise ServiceError(status, fault.code, fault.message, fault.detail)
    return results


def check_all_good(results: Results) -> None:
    """Raises ServiceError if any image is bad: for dialects whose answers have no place for the error of one item."""
    bad = [{"index": index, "error": fault.as_json()} for index, fault in enumerate(results) if isinstance(fault, Fault)]
    if bad:
        message = f"{len(bad)} of {len(results)} images were refused; `detail.items` says which and why. Send the others again."
        raise ServiceError(422, "bad_images", message, {"items": bad})


def stack(results: Results, which: Callable[[Encoded], np.ndarray], dim: int) -> np.ndarray:
    """Vectors of the good items: float32 [n, dim]."""
    return np.array([which(r) for r in results if isinstance(r, Encoded)], np.float32).reshape(-1, dim)


def describe(items: Sequence[Item], results: Results, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object per item: the next of `answers` for a good item, its error for a bad one."""
    good = iter(answers)
    return [
        {"index": index, "name": item.name, **({"error": result.as_json()} if isinstance(result, Fault) else next(good))}
        for index, (item, result) in enumerate(zip(items, results, strict=True))
    ]
