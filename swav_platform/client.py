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

Image = str | Path | bytes  # a file, or an image's bytes


class Client:
    """Asks a running service. Every method returns the answer's JSON and raises UserError when there is none.

    `timeout` is in seconds, for connecting and for each wait on the connection.
    """

    def __init__(self, base_url: str, timeout: float = 30.0) -> None:
        self.base_url = base_url.rstrip("/")
        try:
            place = urlsplit(self.base_url)
            if place.scheme not in ("http", "https") or not place.hostname:
                raise ValueError("it must begin with http:// or https:// and name a host")
            local = place.hostname in ("localhost", "127.0.0.1", "::1")
            self._http = httpx.Client(base_url=self.base_url, timeout=timeout, trust_env=not local)  # no proxy to ourselves
        except (httpx.InvalidURL, ValueError) as error:
            raise UsageError(
                f"{base_url!r} is not the address of a service ({error}); write for example http://127.0.0.1:8000."
            ) from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def embeddings(self, images: Sequence[Image], kind: str = "embedding") -> dict[str, Any]:
        return self._post("/v1/embeddings", images, kind=kind)

    def clusters(self, images: Sequence[Image], top: int = 5) -> dict[str, Any]:
        return self._post("/v1/clusters", images, top=top)

    def neighbors(self, images: Sequence[Image], k: int = 10, thumbnails: bool = True) -> dict[str, Any]:
        return self._post("/v1/neighbors", images, k=k, thumbnails=thumbnails)

    def neighbors_of(self, key: str, k: int = 10, shard: str | None = None, thumbnails: bool = True) -> dict[str, Any]:
        place = {} if shard is None else {"shard": shard}
        return self._get("/v1/neighbors", key=key, k=k, thumbnails=thumbnails, **place)

    def cluster_sizes(self, limit: int = 100, offset: int = 0) -> dict[str, Any]:
        return self._get("/v1/clusters", limit=limit, offset=offset)

    def cluster(self, number: int, limit: int = 20) -> dict[str, Any]:
        return self._get(f"/v1/clusters/{number}", limit=limit)

    def models(self) -> dict[str, Any]:
        return self._get("/v1/models")

    def health(self) -> dict[str, Any]:
        return self._get("/readyz")

    def _get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._ask("GET", path, params=query)

    def _post(self, path: str, images: Sequence[Image], **query: Any) -> dict[str, Any]:
        files = [
            ("images", (_name(image, number), _bytes(image), "application/octet-stream")) for number, image in enumerate(images)
        ]
        if not files:
            raise UsageError("There are no images to ask about; name at least one file.")
        return self._ask("POST", path, params=query, files=files)

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TimeoutException:
            raise UserError(
                f"The service at {self.base_url} did not answer in time; see if it is overloaded, or wait longer."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(
                f"There is no service to be reached at {self.base_url} ({error}); start one with `swav serve`, or name "
                f"its address."
            ) from None
        try:
            answer = response.json()
            if response.is_success and isinstance(answer, dict):
                return answer
            fault = answer["error"]
            told = f"{fault['message']} ({fault['code']}, HTTP {response.status_code})"
        except (ValueError, TypeError, KeyError):
            told = f"an answer that is none of the embeddings service's (HTTP {response.status_code}); is this its address?"
        raise UserError(f"{self.base_url}{path}: {told}")


def _name(image: Image, number: int) -> str:
    """The file's name as text that HTTP can carry."""
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
            f"The image {str(image)!r} can't be read ({error.strerror}); name a file that exists and is yours to read."
        ) from None
