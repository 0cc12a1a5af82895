"""Addresses of web servers: the forms of a hub's addresses, and the headers that a host asks for.

HF_TOKEN: token for huggingface.co, or for the host of HF_ENDPOINT. SWAV_HTTP_HEADERS: headers by host, as JSON. A .netrc file (or
the one that NETRC names): user and password by host.
"""

from __future__ import annotations

import base64
import json
import netrc
import os
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from swav_platform.errors import UsageError

_HUB = re.compile(r"hf://(datasets|models|spaces)/([^/@]+/[^/@]+)(?:@([^/]+(?:/(?:refs|pr)/[^/]+)?))?/(.+)")
_FORM = '\'{"data.example.org": {"Authorization": "Bearer TOKEN"}}\''


def hub_address(url: str) -> str:
    """The https:// form of hf://datasets/OWNER/NAME[@REVISION]/PATH. Raises UsageError for another form."""
    match = _HUB.fullmatch(url)
    if match is None:
        raise UsageError(f"'{url}' can't be used: write hf://datasets/OWNER/NAME/PATH, with braces for several shards.")
    kind, name, revision, path = match.groups()
    kind = "" if kind == "models" else f"{kind}/"
    return f"{_endpoint()}/{kind}{name}/resolve/{quote(revision or 'main', safe='')}/{path}"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def headers(url: str) -> dict[str, str]:
    """The headers that requests to a URL's host need. Raises UsageError if SWAV_HTTP_HEADERS has another form."""
    host = urlsplit(url).netloc.rpartition("@")[2].lower()
    found = _of_netrc(host.partition(":")[0])
    if (token := os.environ.get("HF_TOKEN")) and host == urlsplit(_endpoint()).netloc.lower():
        found = {"Authorization": f"Bearer {token}"}
    own = _own()
    return found | own.get(host, own.get(host.partition(":")[0], {}))


def _own() -> dict[str, dict[str, str]]:
    text = os.environ.get("SWAV_HTTP_HEADERS")
    if not text:
        return {}
    try:
        return {
            host.lower(): {str(name): str(value) for name, value in of_host.items()} for host, of_host in json.loads(text).items()
        }
    except (ValueError, AttributeError):
        raise UsageError(f"SWAV_HTTP_HEADERS can't be read: it must hold headers by host as JSON, such as {_FORM}.") from None


def _of_netrc(host: str) -> dict[str, str]:
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        known = netrc.netrc(path).authenticators(host) if os.path.isfile(path) else None
    except (OSError, netrc.NetrcParseError):
        return {}
    if known is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{known[0]}:{known[2]}".encode()).decode()}
