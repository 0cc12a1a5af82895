"""The nearest of stored samples and added items together."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from services.embeddings.search.log import Item
from services.embeddings.store import Store
from swav_platform.neighbours.search import Where


def find(
    store: Store, queries: np.ndarray, k: int, offset: int, where: Where, *, thumbnail: bool, without: int | None = None
) -> list[list[dict[str, Any]]]:
    """The k nearest behind the first `offset`, best first, as the routes return them, for each unit-length query of [n, D].

    without: number of a sample or item that is left out.
    """
    wanted = offset + k + (without is not None)
    stored = store.nearest(queries, wanted, where)
    added = store.items.nearest(queries, wanted, meets(where) if where else None)
    answers = []
    for (rows, scores), near in zip(stored, added, strict=True):
        both: list[tuple[float, int | Item]] = [(float(s), int(row)) for row, s in zip(rows, scores, strict=True)]
        both += [(score, item) for item, score in near]
        both.sort(key=lambda hit: -hit[0])  # stable: stored samples before items of the same cosine
        kept = [hit for hit in both if without is None or number(store, hit[1]) != without][offset : offset + k]
        answers.append([told(store, what, score, thumbnail=thumbnail) for score, what in kept])
    return answers


def number(store: Store, what: int | Item) -> int:
    return what.id if isinstance(what, Item) else int(store.table["sample"][what].as_py())


def told(store: Store, what: int | Item, score: float, *, thumbnail: bool) -> dict[str, Any]:
    """A row of the store or an item, as the routes return it."""
    if not isinstance(what, Item):
        return store.sample(what, score, thumbnail=thumbnail)
    image = what.thumbnail if thumbnail else None
    return {
        "key": what.key,
        "shard": "",
        "sample": what.id,
        "cluster": what.cluster,
        "score": round(score, 7),
        "label": what.label,
        "thumbnail": None if image is None else "data:image/jpeg;base64," + base64.b64encode(image).decode("ascii"),
    }


def meets(where: Where) -> Callable[[Item], bool]:
    """Whether an item meets the conditions. Items are in no shard."""

    def met(item: Item) -> bool:
        return (
            (where.cluster is None or item.cluster == where.cluster)
            and (where.label is None or item.label == where.label)
            and where.shard is None
            and (where.key_prefix is None or item.key.startswith(where.key_prefix))
        )

    return met
