"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import httpx

from swav_platform.client import answers, calls
from swav_platform.client.exchange import Call, Got, Server, connection, exchange
from swav_platform.client.images import Image, expand, parts
from swav_platform.client.many import MOST, Joined, Make

T = TypeVar("T")


class AsyncClient:
    """The same as Client, for asyncio: methods are awaited, `stream` is an asynchronous iterator."""

    def __init__(self, base_url: str, timeout: float = 30.0, key: str | None = None, retries: int = 3, batch: int = MOST) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.AsyncClient(**connection(self.base_url, timeout, key))
        self._server = Server(self.base_url, retries)
        self._batch = batch

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def embeddings(self, images: Iterable[Image], kind: str = "embedding", model: str | None = None) -> answers.Embeddings:
        """A unit-length vector per image. kind: `embedding` (encoder) or `projection` (head, as compared with prototypes)."""
        return cast(answers.Embeddings, await self._all(calls.embeddings(kind, model), images))

    async def clusters(self, images: Iterable[Image], top: int = 5, model: str | None = None) -> answers.Clusters:
        """The `top` nearest prototypes of each image, with cosine and probability."""
        return cast(answers.Clusters, await self._all(calls.clusters(top, model), images))

    async def neighbors(
        self, images: Iterable[Image], k: int = 10, thumbnails: bool | None = None, model: str | None = None
    ) -> answers.Neighbors:
        """The `k` stored samples nearest to each image. thumbnails: by default if the key may see them."""
        return cast(answers.Neighbors, await self._all(calls.neighbors(k, thumbnails, model), images))

    async def neighbors_of(
        self, key: str, k: int = 10, shard: str | None = None, thumbnails: bool | None = None, model: str | None = None
    ) -> answers.StoredNeighbors:
        """The `k` stored samples nearest to the stored sample `key`; `shard` is needed if several shards have that key."""
        return cast(answers.StoredNeighbors, await self._one(calls.neighbors_of(key, k, shard, thumbnails, model)))

    async def cluster_sizes(self, limit: int = 100, offset: int = 0) -> answers.ClusterList:
        """A page of all clusters with their sizes, largest first."""
        return cast(answers.ClusterList, await self._one(calls.getting("/v1/clusters", limit=limit, offset=offset)))

    async def cluster(self, number: int, limit: int = 20) -> answers.Cluster:
        """One cluster: size, nearest other prototypes and `limit` members."""
        return cast(answers.Cluster, await self._one(calls.getting(f"/v1/clusters/{number}", limit=limit)))

    async def add_items(
        self, images: Iterable[Image], label: str | None = None, thumbnails: bool = True, model: str | None = None
    ) -> answers.Added:
        """Adds images to the served set, under their names as keys: those of their files, or of (name, bytes).

        Never sent again after a lost connection, because the images may have been added.
        """
        return cast(answers.Added, await self._all(calls.add_items(label, thumbnails, model), images))

    async def delete_item(self, number: int, model: str | None = None) -> answers.Deleted:
        """Deletes an added item by its id, or a stored sample by its number, for good."""
        return cast(answers.Deleted, await self._one(calls.delete_item(number, model)))

    async def models(self) -> answers.Models:
        """The served models."""
        return cast(answers.Models, await self._one(calls.getting("/v1/models")))

    async def health(self) -> dict[str, Any]:
        """Raises UserError unless the service can encode images."""
        return await self._one(calls.getting("/readyz"))

    async def stream(
        self,
        images: str | Path | Iterable[Image],
        kind: str = "embedding",
        batch: int | None = None,
        model: str | None = None,
    ) -> AsyncIterator[answers.EmbeddingItem]:
        """Embeddings of a folder, or of any number of images: one item each, in order.

        `index` counts over all images. A bad image is an item with an `error`. Holds the bytes of `batch` images at a time.
        Raises UserError if the service takes another model meanwhile, since the vectors would not be comparable.
        """
        joined, make = Joined(self._server), calls.embeddings(kind, model)
        rest = parts(expand(images), batch or self._batch)
        while part := await asyncio.to_thread(next, rest, None):
            for item in await self._run(joined.ask(make, part)):
                yield cast(answers.EmbeddingItem, item)

    async def _one(self, call: Call) -> dict[str, Any]:
        return await self._run(exchange(call, self._server))

    async def _all(self, make: Make, images: Iterable[Image]) -> dict[str, Any]:
        joined = Joined(self._server)
        rest = parts(images, self._batch)
        while part := await asyncio.to_thread(next, rest, None):
            joined.items += await self._run(joined.ask(make, part))
        return joined.whole()

    async def _run(self, flow: Generator[Call | float, Got, T]) -> T:
        got: Got = None
        while True:
            try:
                step = flow.send(got)
            except StopIteration as done:
                return cast(T, done.value)
            got = await self._step(step)

    async def _step(self, step: Call | float) -> Got:
        if isinstance(step, Call):
            try:
                return await self._http.request(**step.as_httpx())
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                return error
        await asyncio.sleep(step)
        return None
