"""Objects on S3, Google Cloud Storage and web servers: sizes, listings and byte ranges.

Uses obstore, with credentials and endpoints from the standard environment variables: AWS_*, AWS_ENDPOINT_URL, GOOGLE_*.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    GenericError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, HTTPStore, S3Store

from swav_platform.data.storage.redirects import headers_at, target

SCHEMES = ("s3", "gs", "http", "https")
_REFUSED = re.compile(r"status code: 4(?!08|25|29)\d\d")  # a retry does not help
_REMOTE = re.compile(rf"({'|'.join(SCHEMES)})://")

_CONNECT = 5.0  # seconds
_SILENCE = 20.0  # seconds without a byte until a request is aborted; SWAV_STORAGE_TIMEOUT
_LONGEST = 300.0  # maximum seconds of a request
_TRIES = 10  # requests for a range; each continues at the byte where the last one stopped
_LONGEST_PAUSE = 20.0  # maximum seconds between two tries
_CHUNK = 64 * 2**10


@dataclass(frozen=True)
class ObjectInfo:
    """version: the ETag, or the modification time if there is none."""

    size: int
    version: str


class Changed(OSError):
    """An object has changed since it was indexed."""


def is_remote(url: str) -> bool:
    return _REMOTE.match(url) is not None


def refused(error: Exception) -> bool:
    """Whether a server refused a request, so that a retry does not help."""
    return _REFUSED.search(str(error)) is not None


def info(url: str) -> ObjectInfo:
    """Size and version of an object. Raises OSError or an exception of obstore."""
    store, path = locate(url, False)
    bucket = url.startswith(("s3://", "gs://"))
    try:
        return _info(obstore.head(store, path))
    except (FileNotFoundError, NotFoundError):
        if bucket:  # HEAD does not tell a missing bucket from a missing object
            next(listing(url.rpartition("/")[0] + "/"), None)
            raise
    except BaseError as error:
        if bucket or not (isinstance(error, PermissionDeniedError | UnauthenticatedError) or refused(error)):
            raise
    # Servers and signed addresses may allow GET only.
    return _info(obstore.get(store, path, options={"range": (0, 1)}).meta)


def exists(url: str) -> bool:
    """Whether there is an object with this name. Raises OSError or an exception of obstore if the storage does not answer."""
    try:
        info(url)
    except (FileNotFoundError, NotFoundError, OddName):
        return False
    return True


def listing(prefix: str, odd: list[str] | None = None) -> Iterator[tuple[str, ObjectInfo]]:
    """URLs of all objects below an s3:// or gs:// prefix that ends with "/", sorted by name.

    Objects that can't be read because of their names are added to `odd`.
    """
    store, path = locate(prefix, False)
    scheme, bucket = urlsplit(prefix)[:2]
    try:
        metas = [meta for page in obstore.list(store, path or None, chunk_size=1000) for meta in page]
    except InvalidPathError:
        yield from _listing_with_odd_names(prefix, [] if odd is None else odd)
        return
    for meta in metas:
        yield f"{scheme}://{bucket}/{meta['path']}", _info(meta)


def _listing_with_odd_names(prefix: str, odd: list[str]) -> Iterator[tuple[str, ObjectInfo]]:
    """The listing of a prefix with names such as `set//x` that obstore refuses, from Arrow. Sizes and versions are of obstore."""
    from pyarrow import fs

    scheme, bucket, path = prefix.partition("://")[0], *prefix.partition("://")[2].split("/", 1)
    if scheme == "s3":
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        access, secret, session = map(os.environ.get, keys)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        anonymous = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true"
        endpoint = _endpoint("s3")
        storage = fs.S3FileSystem(
            access_key=None if anonymous else access,
            secret_key=None if anonymous else secret,
            session_token=None if anonymous else session,
            anonymous=anonymous,
            region=region,
            endpoint_override=endpoint,
        )
    else:
        storage = fs.GcsFileSystem()
    for entry in storage.get_file_info(fs.FileSelector(f"{bucket}/{path}".rstrip("/"), recursive=True)):
        url = f"{scheme}://{entry.path}"
        if entry.type != fs.FileType.File:
            continue
        if is_odd(url):
            odd.append(url)
        else:
            yield url, info(url)


class OddName(OSError):
    """A name that object storages hold and no client can address: with an empty segment, `.` or `..`, or a control character."""


def is_odd(url: str) -> bool:
    """Whether the name of an object in a bucket can't be addressed."""
    path = url.partition("://")[2].partition("/")[2]
    return (
        any(part in ("", ".", "..") for part in path.removesuffix("/").split("/"))
        or re.search(r"[\x00-\x1f\x7f]", path) is not None
    )


@dataclass
class Traffic:
    """Counts of requests to storages and of bytes received."""

    requests: int = 0
    bytes: int = 0


def read_range(
    url: str, start: int, end: int, *, version: str = "", traffic: Traffic | None = None, tries: int = _TRIES
) -> tuple[bytes, ObjectInfo]:
    """Bytes start .. end-1, fewer if the object ends before, and the object's info.

    A request continues at the byte where the last one stopped. Raises Changed if the object has another version than `version`,
    OSError or an exception of obstore after `tries` requests without a byte, and NotSupportedError of obstore if the server has no
    ranges.
    """
    store, path = locate(url, True)
    parts: list[bytes] = []
    at, seen = start, None
    failures = 0  # in a row, without a byte
    while failures < tries:
        began = at
        options: dict[str, Any] = {"range": (at, end)}
        if version.startswith('"'):  # a weak ETag never matches
            options["if_match"] = version
        if traffic is not None:
            traffic.requests += 1
        try:
            answer = obstore.get(store, path, options=options)  # type: ignore[arg-type]
            now = _info(answer.meta)
            if (seen or now) != now or now.version != (version or now.version):
                raise Changed(f"{url} has changed")
            seen = now
            for chunk in answer.stream(min_chunk_size=_CHUNK):
                parts.append(bytes(chunk))
                at += len(parts[-1])
                if traffic is not None:
                    traffic.bytes += len(parts[-1])
            if at >= min(end, seen.size):
                return b"".join(parts), seen
        except PreconditionError:
            raise Changed(f"{url} has changed") from None
        except GenericError as error:
            if refused(error) or (at == began and failures + 1 == tries):
                raise
        failures = 0 if at > began else failures + 1
        time.sleep(min(_LONGEST_PAUSE, 0.1 * 2**failures))
    raise OSError(f"{url} stops at byte {at:,}")


def read_whole(url: str, version: str = "") -> Iterator[bytes]:
    """The whole object in pieces, for servers without ranges. Raises Changed if it has another version than `version`."""
    store, path = locate(url, True)
    answer = obstore.get(store, path)
    if version and _info(answer.meta).version != version:
        raise Changed(f"{url} has changed")
    for chunk in answer.stream(min_chunk_size=2**20):
        yield bytes(chunk)


def _info(meta: Any) -> ObjectInfo:
    changed = meta["last_modified"]
    return ObjectInfo(meta["size"], meta["e_tag"] or (changed.isoformat() if changed else ""))


def locate(url: str, patient: bool) -> tuple[Any, str]:
    """The store of a URL and the path in it. patient: retry for longer, as training does; a first contact fails early."""
    parts = urlsplit(url)
    silence = float(os.environ.get("SWAV_STORAGE_TIMEOUT", _SILENCE))
    if parts.scheme in ("s3", "gs"):
        path = url.partition("://")[2].partition("/")[2]
        if path and is_odd(url):
            raise OddName("its name has an empty segment, a segment of dots or a control character")
        return _bucket(parts.scheme, parts.netloc, patient, silence, _endpoint(parts.scheme)), path
    place = target(url)
    headers = tuple(headers_at(place, url).items())
    url, parts = place, urlsplit(place)
    path = unquote(parts.path.lstrip("/"))
    if parts.query or "//" in path:  # the query of a signed URL is valid for this object only
        return _server(url, patient, silence, headers), ""
    return _server(f"{parts.scheme}://{parts.netloc}", patient, silence, headers), path


@lru_cache(64)
def _bucket(scheme: str, bucket: str, patient: bool, silence: float, endpoint: str | None) -> Any:
    kind = S3Store if scheme == "s3" else GCSStore
    config = {"endpoint": endpoint} if endpoint else {}
    return kind(bucket, client_options=_client(silence, patient, endpoint or ""), retry_config=_retries(patient), **config)  # type: ignore[arg-type]


@lru_cache(256)
def _server(base: str, patient: bool, silence: float, headers: tuple[tuple[str, str], ...]) -> Any:
    options = _client(silence, patient, base) | ({"default_headers": dict(headers)} if headers else {})
    return HTTPStore.from_url(base, client_options=options, retry_config=_retries(patient))


def _endpoint(scheme: str) -> str | None:
    return (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")) if scheme == "s3" else None


def _client(silence: float, patient: bool, endpoint: str) -> Any:
    return {
        "connect_timeout": timedelta(seconds=_CONNECT),
        "read_timeout": timedelta(seconds=silence if patient else min(silence, 10.0)),
        "timeout": timedelta(seconds=_LONGEST),
        "allow_http": endpoint.startswith("http://") or os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",
        "user_agent": "swav-platform",
    }


def _retries(patient: bool) -> Any:
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2}
    return {"max_retries": 3 if patient else 2, "retry_timeout": timedelta(seconds=20 if patient else 15), "backoff": backoff}
