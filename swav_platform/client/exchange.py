"""One exchange with the service, without the network: what is sent, when it is sent again, what an answer means.

`exchange` is a generator. It yields a Call to be sent, and takes its response or failure; or seconds to wait for. So the same
code serves a client that blocks and one that does not.
"""

from __future__ import annotations

import email.utils
import itertools
import os
import random
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from swav_platform.client.images import Named
from swav_platform.errors import UsageError, UserError

REFUSED = frozenset({429, 503})
"""Statuses of requests that changed nothing, and will be answered later."""

GATEWAY = frozenset({502, 504})
"""Statuses of a gateway that does not know what became of the request."""

LOST = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""Failures of an open connection: the process may have ended."""

LONGEST_PAUSE = 60.0


class RefusedError(UserError):
    """The service answered with an error. error: its code, message and detail."""

    def __init__(self, told: str, status: int, error: Any) -> None:
        super().__init__(told)
        self.status, self.error = status, error


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    query: dict[str, Any] = field(default_factory=dict)  # values that are None are left out
    images: Sequence[Named] = ()
    harmless: bool = True  # whether it may be sent again when its outcome is unknown

    def as_httpx(self) -> dict[str, Any]:
        """Arguments of httpx's `request`."""
        given = {name: value for name, value in self.query.items() if value is not None}
        files = [("images", (name, data, "application/octet-stream")) for name, data in self.images]
        return {"method": self.method, "url": self.path, "params": given, **({"files": files} if files else {})}


@dataclass
class Server:
    """Whom a client talks to."""

    base_url: str
    retries: int
    answered: bool = False  # whether it ever did


Got = httpx.Response | Exception | None
Flow = Generator[Call | float, Got, dict[str, Any]]


def exchange(call: Call, server: Server) -> Flow:
    """The answer, after as many tries as it takes and is allowed. Raises UserError, and RefusedError for an error of the service."""
    for tried in itertools.count():
        got = yield call
        if isinstance(got, httpx.Response):
            server.answered = True
        if tried >= server.retries or not _passes(call, got, server):
            return _understood(call, got, server)
        yield pause(got, tried)
    raise AssertionError("count() does not end")


def _passes(call: Call, got: Got, server: Server) -> bool:
    """Whether the request may succeed later."""
    if call.path == "/readyz":
        return False
    if isinstance(got, httpx.Response):
        lost = got.status_code in GATEWAY or (got.status_code == 500 and _fault(got) is None)  # a proxy lost the process
        return got.status_code in REFUSED or (lost and call.harmless)
    return (isinstance(got, LOST) and call.harmless) or (isinstance(got, httpx.ConnectError) and server.answered)


def _understood(call: Call, got: Got, server: Server) -> dict[str, Any]:
    if isinstance(got, httpx.TimeoutException):
        raise UserError(
            f"The service at {server.base_url} did not respond in time. Check whether it is overloaded, or raise the timeout."
        )
    if not isinstance(got, httpx.Response):
        raise UserError(f"Cannot reach a service at {server.base_url} ({got}). Start one with `swav serve`, or pass its address.")
    where = f"{server.base_url}{call.path}"
    if got.is_success and isinstance(answer := _json(got), dict):
        return answer
    if (fault := _fault(got)) is not None:
        raise RefusedError(f"{where}: {fault['message']} ({fault['code']}, HTTP {got.status_code})", got.status_code, fault)
    raise UserError(f"{where}: not a response of the embeddings service (HTTP {got.status_code}). Check the address.")


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _fault(response: httpx.Response) -> dict[str, Any] | None:
    """The error of the service, None if the answer has another shape."""
    answer = _json(response)
    fault = answer.get("error") if isinstance(answer, dict) else None
    return fault if isinstance(fault, dict) and {"code", "message"} <= set(fault) else None


def pause(got: Got, tried: int) -> float:
    """Seconds to wait before the next try: those of Retry-After (a number or a date), else 0.5, 1, 2 …, up to a minute."""
    told = got.headers.get("retry-after", "") if isinstance(got, httpx.Response) else ""
    if told.isdecimal():
        return min(float(told), LONGEST_PAUSE)
    try:
        seconds = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
    except (TypeError, ValueError):
        seconds = 0.5 * 2.0**tried * random.uniform(0.8, 1.2)
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def connection(base_url: str, timeout: float, key: str | None) -> dict[str, Any]:
    """Arguments of httpx's clients. Raises UsageError for an address that is none."""
    key = key if key is not None else os.environ.get("SWAV_API_KEY")
    try:
        place = urlsplit(base_url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError("it must start with http:// or https:// and contain a host")
        httpx.URL(base_url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UsageError(
            f"{base_url!r} is not a valid service address ({error}). Use for example http://127.0.0.1:8000."
        ) from None
    local = place.hostname in ("localhost", "127.0.0.1", "::1")  # no proxy for local addresses
    return {"base_url": base_url, "timeout": timeout, "trust_env": not local, "headers": {"X-API-Key": key} if key else {}}
