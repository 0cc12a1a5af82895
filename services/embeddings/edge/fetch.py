"""Fetches images that requests name by URL: over https, from hosts of a list, at public addresses, within limits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpcore
import httpx

from services.embeddings.body import Held
from services.embeddings.edge.hosts import HTTPS, Host, listed, public
from services.embeddings.errors import Fault, ServiceError, busy, image_fault
from services.embeddings.settings import Limits
from swav_platform import __version__
from swav_platform.data.ledger.outcomes import Outcome

SECONDS = 10.0  # for all images of a request together
HOPS = 3  # redirects of one image
LONGEST = 4096  # characters of a URL
CONNECTIONS = 32
IDLE = 5.0  # seconds that an unused connection stays open
RESOLVERS = 8  # threads: a name server that doesn't answer holds one for long
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = (("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", f"swav-platform/{__version__}"))

_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol)


class _Refused(Exception):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def _not_allowed(reason: str) -> _Refused:
    return _Refused("url_not_allowed", reason)


def _failed(reason: str) -> _Refused:
    return _Refused("url_failed", reason)


class Fetcher:
    """Belongs to one event loop. It uses no proxy, and sends neither cookies nor credentials."""

    def __init__(self, allowed: Sequence[Host], limits: Limits) -> None:
        self._allowed = allowed
        self._limits = limits
        self._waiting = 0  # images that are being fetched
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "resolve")
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),  # certifi's authorities, or those of SSL_CERT_FILE
            max_connections=CONNECTIONS,
            keepalive_expiry=IDLE,
            network_backend=_PublicOnly(self._resolvers),
        )

    async def close(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        await self._pool.aclose()

    async def fetch(self, urls: Sequence[tuple[str, str]], held: Held) -> list[bytes | Fault]:
        """Images, or what was wrong with each. urls: place in the request and URL of each image. `held` counts the bytes.

        Raises ServiceError 503 if too many images are being fetched or memory is short, 413 if those of the request are too large
        together.
        """
        if self._waiting + len(urls) > self._limits.max_pending:
            raise busy(f"{self._waiting} images are being fetched")
        self._waiting += len(urls)
        deadline = asyncio.get_running_loop().time() + SECONDS
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(place, url, held, deadline)) for place, url in urls]
            return [task.result() for task in tasks]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._waiting -= len(urls)

    async def _one(self, place: str, url: str, held: Held, deadline: float) -> bytes | Fault:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._follow(url, held)
        except _Refused as refused:
            why = refused
        except TimeoutError:
            why = _failed(f"the images of the request took longer than {SECONDS:.0f} s")
        except (*_BROKEN, OSError) as error:
            why = _failed(f"the connection failed ({type(error).__name__})")
        if why.code == Outcome.TOO_MANY_BYTES.word:
            return image_fault(Outcome.TOO_MANY_BYTES, str(why))
        return Fault(why.code, f"{place} was not fetched: {why}.", {"where": place})

    async def _follow(self, url: str, held: Held) -> bytes:
        target = self._checked(url, None)
        for _ in range(HOPS + 1):
            request = httpcore.URL(scheme=b"https", host=target.raw_host, port=target.port or HTTPS, target=target.raw_path)
            async with self._pool.stream("GET", request, headers=HEADERS) as response:
                headers = {name.lower(): value for name, value in response.headers}
                if response.status not in REDIRECTS or b"location" not in headers:
                    return await self._read(response, headers, held)
                target = self._checked(headers[b"location"].decode("latin-1"), target)
        raise _failed(f"it was redirected more than {HOPS} times")

    def _checked(self, text: str, base: httpx.URL | None) -> httpx.URL:
        """Raises _Refused for a URL that must not be asked. base: the URL that redirects to it."""
        try:
            if len(text) > LONGEST:
                raise ValueError
            url = httpx.URL(text) if base is None else base.join(text)
        except (httpx.InvalidURL, ValueError):
            raise _not_allowed("it is no valid URL") from None
        name, port = url.raw_host.decode("ascii"), url.port or HTTPS
        if url.scheme != "https" or not name:
            raise _not_allowed("only https is fetched")
        if url.userinfo:
            raise _not_allowed("the URL has a user name or a password")
        if not listed(self._allowed, name, port):
            raise _not_allowed(f"the host {name[:80]}:{port} is not in the list of --allow-urls")
        return url

    async def _read(self, response: httpcore.Response, headers: Mapping[bytes, bytes], held: Held) -> bytes:
        if response.status != 200:
            raise _failed(f"the host answered with the status {response.status}")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise _failed("the host compressed its answer, though it was asked not to")
        limit = self._limits.max_bytes
        too_large = _Refused(Outcome.TOO_MANY_BYTES.word, f"larger than max_bytes, {limit}")
        with suppress(ValueError):
            if int(headers.get(b"content-length", b"0")) > limit:
                raise too_large
        parts, size = list[bytes](), 0
        try:
            async for part in response.aiter_stream():
                if size + len(part) > limit:
                    raise too_large
                self._check_total(held.size + len(part))
                held.add(len(part))
                size += len(part)
                parts.append(part)
        except BaseException:
            held.forget(size)
            raise
        return b"".join(parts)

    def _check_total(self, size: int) -> None:
        limit = self._limits.max_body
        if size > limit:
            message = f"The request and its images have more than {limit} bytes. Split it into several requests."
            raise ServiceError(413, "too_many_bytes", message, {"limit": limit})


class _PublicOnly(httpcore.AsyncNetworkBackend):
    """Resolves a name once and connects to the addresses that it checked: a name that changes its address gains nothing.

    TLS asks for the name and checks it, as usual.
    """

    def __init__(self, resolvers: ThreadPoolExecutor) -> None:
        self._resolvers = resolvers
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, *more: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        for address in addresses[:-1]:
            with suppress(*_BROKEN):
                return await self._plain.connect_tcp(address, port, *more, **options)
        return await self._plain.connect_tcp(addresses[-1], port, *more, **options)

    async def _resolve(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):
            raise _failed("the name of its host has no address") from None
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        if not addresses or not all(map(public, addresses)):
            raise _not_allowed("its host has an address that is not public")
        return addresses
