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
_lock = threading.Lock()
_targets: dict[str, tuple[str, float]] = {}  # url -> address, end of its life (seconds since 1970)
_direct: set[str] = set()  # hosts that do not redirect


def target(url: str) -> str:
    """The address to which `url` leads; itself if its host does not redirect. Failures are left to the request itself."""
    host = urlsplit(url).netloc
    with _lock:
        known, end = _targets.get(url, ("", 0.0))
        if host in _direct:
            return url
    if time.time() < end:
        return known
    found = _ask(url)
    with _lock:
        if found == url:
            _direct.add(host)
        elif found is not None:
            if len(_targets) >= _MOST:
                _targets.clear()
            _targets[url] = (found, _end(found))
    return found or url


def forget(url: str) -> bool:
    """Drops the address of `url`; returns whether there was one."""
    with _lock:
        return _targets.pop(url, None) is not None


def _ask(url: str) -> str | None:
    """The end of a chain of redirects; None if a server does not answer as it should."""
    place = url
    try:
        for _ in range(_MOST_HOPS):
            answer = httpx.head(place, headers=headers(place), timeout=5.0)
            if answer.status_code not in _REDIRECTS or "location" not in answer.headers:
                return place if answer.is_success or place != url else None
            place = urljoin(place, answer.headers["location"])
    except httpx.HTTPError:
        return None
    return None


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
