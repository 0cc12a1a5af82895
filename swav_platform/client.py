"""HTTP client of the embeddings service."""

from __future__ import annotations

import email.utils
import itertools
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from swav_platform.errors import UsageError, UserError

AGAIN = frozenset({429, 502, 503, 504})
"""Statuses that pass: the request is sent again."""

LONGEST_PAUSE = 60.0

Image = str | Path | bytes  # a file, or the content of an image file


class RefusedError(UserError):
    """The service answered with an error. error: its code, message and detail."""

    def __init__(self, told: str, status: int, error: dict[str, Any]) -> None:
        super().__init__(told)
        self.status, self.error = status, error


class Client:
    """Client of a running service, also usable as a context manager.

    Methods return the response's JSON object. They raise UserError if the service cannot be reached or reports an
    error, and UsageError for an image file that cannot be read. `timeout` is in seconds, for connecting and for each
    read or write. `key` is an API key (default: the variable SWAV_API_KEY). A busy service is asked again, `retries`
    times, after the time that it names in Retry-After or after a pause that doubles.
    """

    def __init__(self, base_url: str, timeout: float = 30.0, key: str | None = None, retries: int = 3) -> None:
        self.base_url = base_url.rstrip("/")
        self.retries = retries
        key = key if key is not None else os.environ.get("SWAV_API_KEY")
        try:
            place = urlsplit(self.base_url)
            if place.scheme not in ("http", "https") or not place.hostname:
                raise ValueError("it must start with http:// or https:// and contain a host")
            local = place.hostname in ("localhost", "127.0.0.1", "::1")
            self._http = httpx.Client(
                base_url=self.base_url, timeout=timeout, trust_env=not local, headers={"X-API-Key": key} if key else {}
            )  # no proxy for local addresses
        except (httpx.InvalidURL, ValueError) as error:
            raise UsageError(
                f"{base_url!r} is not a valid service address ({error}). Use for example http://127.0.0.1:8000."
            ) from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def embeddings(self, images: Sequence[Image], kind: str = "embedding") -> dict[str, Any]:
        """A unit-length vector per image. kind: `embedding` (encoder) or `projection` (head, as compared with prototypes)."""
        return self._post("/v1/embeddings", images, kind=kind)

    def clusters(self, images: Sequence[Image], top: int = 5) -> dict[str, Any]:
        """The `top` nearest prototypes of each image, with cosine and probability."""
        return self._post("/v1/clusters", images, top=top)

    def neighbors(self, images: Sequence[Image], k: int = 10, thumbnails: bool | None = None) -> dict[str, Any]:
        """The `k` stored samples nearest to each image. thumbnails: by default if the key may see them."""
        return self._post("/v1/neighbors", images, k=k, thumbnails=thumbnails)

    def neighbors_of(self, key: str, k: int = 10, shard: str | None = None, thumbnails: bool | None = None) -> dict[str, Any]:
        """The `k` stored samples nearest to the stored sample `key`; `shard` is needed if several shards have that key."""
        selected = {} if shard is None else {"shard": shard}
        return self._get("/v1/neighbors", key=key, k=k, thumbnails=thumbnails, **selected)

    def cluster_sizes(self, limit: int = 100, offset: int = 0) -> dict[str, Any]:
        """A page of all clusters with their sizes, largest first."""
        return self._get("/v1/clusters", limit=limit, offset=offset)

    def cluster(self, number: int, limit: int = 20) -> dict[str, Any]:
        """One cluster: size, nearest other prototypes and `limit` members."""
        return self._get(f"/v1/clusters/{number}", limit=limit)

    def models(self) -> dict[str, Any]:
        """The served model."""
        return self._get("/v1/models")

    def health(self) -> dict[str, Any]:
        """Raises UserError unless the service can encode images."""
        return self._get("/readyz")

    def stream(self, images: Iterable[Image], kind: str = "embedding", batch: int = 16) -> Iterator[dict[str, Any]]:
        """Embeddings of any number of images, such as `Path("photos").rglob("*.jpg")`: one item each, in order.

        `index` counts over all images. A bad image is an item with an `error`. Holds the bytes of `batch` images at a time.
        Raises UserError if the service takes another model meanwhile, since the vectors would not be comparable.
        """
        model, place = None, 0
        for part in _batched(images, batch):
            try:
                found = self.embeddings(part, kind)
            except RefusedError as refused:
                if len(part) > 1 or refused.status not in (413, 422):
                    raise
                name = _name(part[0], 0)  # the only image of a request is bad: the error of the request is that of its item
                found = {"model": model, "items": [{"index": 0, "name": name, "error": refused.error}]}
            if None not in (model, found["model"]) and model != found["model"]:
                raise UserError(f"{self.base_url} has changed its model from {model} to {found['model']}. Start again.")
            model = found["model"] or model
            for item in found["items"]:
                yield {**item, "index": place + item["index"]}
            place += len(part)

    def _get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._ask("GET", path, params=_given(query))

    def _post(self, path: str, images: Sequence[Image], **query: Any) -> dict[str, Any]:
        files = [
            ("images", (_name(image, number), _bytes(image), "application/octet-stream")) for number, image in enumerate(images)
        ]
        if not files:
            raise UsageError("The list of images is empty. Pass at least one image.")
        return self._ask("POST", path, params=_given(query), files=files)

    def _patiently(self, method: str, path: str, request: dict[str, Any]) -> httpx.Response:
        """The answer, after as many tries as it takes and is allowed. Requests change nothing, so they may be repeated."""
        for tried in itertools.count():
            response = self._http.request(method, path, **request)
            if response.status_code not in AGAIN or tried >= self.retries or path == "/readyz":
                return response
            time.sleep(pause(response, tried))
        raise AssertionError("count() does not end")

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = self._patiently(method, path, request)
        except httpx.TimeoutException:
            raise UserError(
                f"The service at {self.base_url} did not respond in time. Check whether it is overloaded, or raise the timeout."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(
                f"Cannot reach a service at {self.base_url} ({error}). Start one with `swav serve`, or pass its address."
            ) from None
        try:
            answer = response.json()
            if response.is_success and isinstance(answer, dict):
                return answer
            fault = answer["error"]
            told = f"{self.base_url}{path}: {fault['message']} ({fault['code']}, HTTP {response.status_code})"
            raise RefusedError(told, response.status_code, fault)
        except (ValueError, TypeError, KeyError):
            told = f"not a response of the embeddings service (HTTP {response.status_code}). Check the address."
        raise UserError(f"{self.base_url}{path}: {told}")


def _given(query: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _batched(images: Iterable[Image], size: int) -> Iterator[tuple[Image, ...]]:
    rest = iter(images)
    while part := tuple(itertools.islice(rest, size)):
        yield part


def pause(response: httpx.Response, tried: int) -> float:
    """Seconds to wait before the next try: those of Retry-After (a number or a date), else 0.5, 1, 2 …, up to a minute."""
    told = response.headers.get("retry-after", "")
    if told.isdigit():
        return min(float(told), LONGEST_PAUSE)
    try:
        seconds = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
    except (TypeError, ValueError):
        seconds = 0.5 * 2.0**tried * random.uniform(0.8, 1.2)
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def _name(image: Image, number: int) -> str:
    """The file name as text that is valid in HTTP; bytes that are not UTF-8 are escaped."""
    if isinstance(image, bytes):
        return f"image-{number}"
    return os.fsencode(Path(image).name).decode("utf-8", "backslashreplace")


def _bytes(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise UsageError(
            f"Cannot read the image {str(image)!r} ({error.strerror}). Check the path and its permissions."
        ) from None
