"""The calls of the service's API, which both clients offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from swav_platform.client.exchange import Call
from swav_platform.client.images import Named
from swav_platform.client.many import Make


def posting(path: str, *, harmless: bool = True, **query: Any) -> Make:
    """A call that sends images."""

    def make(images: Sequence[Named]) -> Call:
        return Call("POST", path, query, images, harmless)

    return make


def getting(path: str, **query: Any) -> Call:
    return Call("GET", path, query)


def embeddings(kind: str, model: str | None) -> Make:
    return posting("/v1/embeddings", kind=kind, model=model)


def clusters(top: int, model: str | None) -> Make:
    return posting("/v1/clusters", top=top, model=model)


def neighbors(k: int, thumbnails: bool | None, model: str | None) -> Make:
    return posting("/v1/neighbors", k=k, thumbnails=thumbnails, model=model)


def neighbors_of(key: str, k: int, shard: str | None, thumbnails: bool | None, model: str | None) -> Call:
    return getting("/v1/neighbors", key=key, k=k, thumbnails=thumbnails, shard=shard, model=model)


def add_items(label: str | None, thumbnails: bool, model: str | None) -> Make:
    return posting("/v1/items", harmless=False, label=label, thumbnail=thumbnails, model=model)


def delete_item(number: int, model: str | None) -> Call:
    return Call("DELETE", f"/v1/items/{quote(str(number))}", {"model": model}, harmless=False)
