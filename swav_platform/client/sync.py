"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import httpx

from swav_platform.client import answers, calls
from swav_platform.client.exchange import Call, Got, Server, connection, exchange
from swav_platform.client.images import Image, expand, parts
from swav_platform.client.many import MOST, Joined, Make

T = TypeVar("T")


class Client:
    """Client of a running service, also usable as a context manager.

    Methods return the response's JSON object. They raise UserError if the service cannot be reached or reports an
    error, and UsageError for an image file that cannot be read. `timeout` is in seconds, for connecting and for each
    read or write. `key` is an API key (default: the variable SWAV_API_KEY). A busy service is asked again, `retries`
    times, after the time that it names in Retry-After or after a pause that doubles; so is one that was lost meanwhile,
    if the request changes nothing. Lists of images of any length are sent in several requests, of at most `batch` images.
    `model` chooses one of several served models by its name or digest.
    """

    def __init__(self, base_url: str, timeout: float = 30.0, key: str | None = None, retries: int = 3, batch: int = MOST) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(**connection(self.base_url, timeout, key))
        self._server = Server(self.base_url, retries)
        self._batch = batch

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def embeddings(self, images: Iterable[Image], kind: str = "embedding", model: str | None = None) -> answers.Embeddings:
        """A unit-length vector per image. kind: `embedding` (encoder) or `projection` (head, as compared with prototypes)."""
        return cast(answers.Embeddings, self._all(calls.embeddings(kind, model), images))

    def clusters(self, images: Iterable[Image], top: int = 5, model: str | None = None) -> answers.Clusters:
        """The `top` nearest prototypes of each image, with cosine and probability."""
        return cast(answers.Clusters, self._all(calls.clusters(top, model), images))

    def neighbors(
        self, images: Iterable[Image], k: int = 10, thumbnails: bool | None = None, model: str | None = None
    ) -> answers.Neighbors:
        """The `k` stored samples nearest to each image. thumbnails: by default if the key may see them."""
        return cast(answers.Neighbors, self._all(calls.neighbors(k, thumbnails, model), images))

    def neighbors_of(
        self, key: str, k: int = 10, shard: str | None = None, thumbnails: bool | None = None, model: str | None = None
    ) -> answers.StoredNeighbors:
        """The `k` stored samples nearest to the stored sample `key`; `shard` is needed if several shards have that key."""
        return cast(answers.StoredNeighbors, self._one(calls.neighbors_of(key, k, shard, thumbnails, model)))

    def cluster_sizes(self, limit: int = 100, offset: int = 0) -> answers.ClusterList:
        """A page of all clusters with their sizes, largest first."""
        return cast(answers.ClusterList, self._one(calls.getting("/v1/clusters", limit=limit, offset=offset)))

    def cluster(self, number: int, limit: int = 20) -> answers.Cluster:
        """One cluster: size, nearest other prototypes and `limit` members."""
        return cast(answers.Cluster, self._one(calls.getting(f"/v1/clusters/{number}", limit=limit)))

    def add_items(
        self, images: Iterable[Image], label: str | None = None, thumbnails: bool = True, model: str | None = None
    ) -> answers.Added:
        """Adds images to the served set, under their names as keys: those of their files, or of (name, bytes).

        Never sent again after a lost connection, because the images may have been added.
        """
        return cast(answers.Added, self._all(calls.add_items(label, thumbnails, model), images))

    def delete_item(self, number: int, model: str | None = None) -> answers.Deleted:
        """Deletes an added item by its id, or a stored sample by its number, for good."""
        return cast(answers.Deleted, self._one(calls.delete_item(number, model)))

    def models(self) -> answers.Models:
        """The served models."""
        return cast(answers.Models, self._one(calls.getting("/v1/models")))

    def health(self) -> dict[str, Any]:
        """Raises UserError unless the service can encode images."""
        return self._one(calls.getting("/readyz"))

    def stream(
        self,
        images: str | Path | Iterable[Image],
        kind: str = "embedding",
        batch: int | None = None,
        model: str | None = None,
    ) -> Iterator[answers.EmbeddingItem]:
        """Embeddings of a folder, or of any number of images: one item each, in order.

        `index` counts over all images. A bad image is an item with an `error`. Holds the bytes of `batch` images at a time.
        Raises UserError if the service takes another model meanwhile, since the vectors would not be comparable.
        """
        joined, make = Joined(self._server), calls.embeddings(kind, model)
        for part in parts(expand(images), batch or self._batch):
            yield from cast(list[answers.EmbeddingItem], self._run(joined.ask(make, part)))

    def _one(self, call: Call) -> dict[str, Any]:
        return self._run(exchange(call, self._server))

    def _all(self, make: Make, images: Iterable[Image]) -> dict[str, Any]:
        joined = Joined(self._server)
        for part in parts(images, self._batch):
            joined.items += self._run(joined.ask(make, part))
        return joined.whole()

    def _run(self, flow: Generator[Call | float, Got, T]) -> T:
        got: Got = None
        while True:
            try:
                step = flow.send(got)
            except StopIteration as done:
                return cast(T, done.value)
            got = self._step(step)

    def _step(self, step: Call | float) -> Got:
        if isinstance(step, Call):
            try:
                return self._http.request(**step.as_httpx())
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                return error
        time.sleep(step)
        return None
