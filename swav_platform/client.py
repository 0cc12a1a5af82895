"""HTTP client of the embeddings service."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from swav_platform.errors import UsageError, UserError

Image = str | Path | bytes  # a file, or the content of an image file


class Client:
    """Client of a running service, also usable as a context manager.

    Methods return the response's JSON object. They raise UserError if the service cannot be reached or reports an
    error, and UsageError for an image file that cannot be read. `timeout` is in seconds, for connecting and for each
    read or write.
    """

    def __init__(self, base_url: str, timeout: float = 30.0) -> None:
        self.base_url = base_url.rstrip("/")
        try:
            place = urlsplit(self.base_url)
            if place.scheme not in ("http", "https") or not place.hostname:
                raise ValueError("it must start with http:// or https:// and contain a host")
            local = place.hostname in ("localhost", "127.0.0.1", "::1")
            self._http = httpx.Client(
                base_url=self.base_url, timeout=timeout, trust_env=not local
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

    def neighbors(self, images: Sequence[Image], k: int = 10, thumbnails: bool = True) -> dict[str, Any]:
        """The `k` stored samples nearest to each image."""
        return self._post("/v1/neighbors", images, k=k, thumbnails=thumbnails)

    def neighbors_of(self, key: str, k: int = 10, shard: str | None = None, thumbnails: bool = True) -> dict[str, Any]:
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

    def _get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._ask("GET", path, params=query)

    def _post(self, path: str, images: Sequence[Image], **query: Any) -> dict[str, Any]:
        files = [
            ("images", (_name(image, number), _bytes(image), "application/octet-stream")) for number, image in enumerate(images)
        ]
        if not files:
            raise UsageError("The list of images is empty. Pass at least one image.")
        return self._ask("POST", path, params=query, files=files)

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **request)
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
            told = f"{fault['message']} ({fault['code']}, HTTP {response.status_code})"
        except (ValueError, TypeError, KeyError):
            told = f"not a response of the embeddings service (HTTP {response.status_code}). Check the address."
        raise UserError(f"{self.base_url}{path}: {told}")


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
