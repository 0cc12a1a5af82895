"""Redirects of web servers, remembered for the life of the address that they lead to.

A hub answers each request for a file with a signed address on another host. Asking once instead of for each range halves the
requests, and headers with a token stay with the host that asked for them.
"""

from __future__ import annotations

import datetime
import threading
import time
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx

from swav_platform.data.storage.addresses import headers

_LIFE = 300.0  # seconds, of an address that does not say when it expires
_EARLY = 30.0  # seconds before its end at which an address is asked for again
_MOST_HOPS, _MOST = 5, 10_000
_REDIRECTS = (301, 302, 303, 307, 308)
_STRIPPED = {"authorization", "cookie"}  # headers that obstore's client does not take to another host
_lock = threading.Lock()
_targets: dict[str, tuple[str, float]] = {}  # url -> address, end of its life (seconds since 1970)
_direct: set[str] = set()  # hosts that need no headers and do not redirect


def target(url: str) -> str:
    """The address to which `url` leads; itself if its host does not redirect.

    Failures are left to the request itself, unless it could take headers to another host; then raises OSError.
    """
    host, given = urlsplit(url).netloc, headers(url)
    with _lock:
        known, end = _targets.get(url, ("", 0.0))
        if host in _direct and not given:
            return url
    if time.time() < end:
        return known
    try:
        found, works = _ask(url)
    except httpx.HTTPError as error:
        if {name.lower() for name in given} <= _STRIPPED:
            return url
        raise OSError(f"{host} does not tell where its file is: {error}") from None
    if not works:
        return found
    with _lock:
        if found == url and not given:
            _direct.add(host)
        else:
            if len(_targets) >= _MOST:
                _targets.clear()
            _targets[url] = (found, _end(found))
    return found


def forget(url: str) -> bool:
    """Drops the address of `url`; returns whether there was one."""
    with _lock:
        return _targets.pop(url, None) is not None


def headers_at(place: str, url: str) -> dict[str, str]:
    """The headers for an address to which `url` leads. A way from https to http takes none."""
    return {} if url.startswith("https:") and place.startswith("http:") else headers(place)


def _ask(url: str) -> tuple[str, bool]:
    """The end of a chain of redirects, and whether there is something. Raises httpx.HTTPError."""
    place = url
    for _ in range(_MOST_HOPS):
        answer = _answer(place, headers_at(place, url))
        if answer.status_code not in _REDIRECTS or "location" not in answer.headers:
            return place, answer.is_success or place != url
        place = urljoin(place, answer.headers["location"])
    raise httpx.TooManyRedirects(f"more than {_MOST_HOPS} redirects")


def _answer(place: str, given: dict[str, str]) -> httpx.Response:
    """The answer to HEAD; that to GET, without its body, from servers and signed addresses that allow GET only."""
    answer = httpx.head(place, headers=given, timeout=5.0)
    if answer.is_success or answer.status_code in _REDIRECTS:
        return answer
    with httpx.stream("GET", place, headers=given | {"Range": "bytes=0-0"}, timeout=5.0) as answer:
        return answer


def _end(address: str) -> float:
    """The time at which a signed address expires, in the forms of S3, Google and CloudFront, and Azure."""
    query = {name.lower(): values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    try:
        if "expires" in query:
            return float(query["expires"]) - _EARLY
        for vendor in ("amz", "goog"):
            if f"x-{vendor}-expires" in query:
                signed = datetime.datetime.strptime(query[f"x-{vendor}-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
                return signed.timestamp() + float(query[f"x-{vendor}-expires"]) - _EARLY
        if "se" in query:
            return datetime.datetime.fromisoformat(query["se"]).timestamp() - _EARLY
    except (KeyError, ValueError):
        pass
    return time.time() + _LIFE
