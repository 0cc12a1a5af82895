"""Where the files of runs are: a folder on disk, or a prefix in an object store (s3://, gs://). Both have the same operations.

A place is a `Path`, or a URL as `str`. Keys are relative paths with "/". Object stores are reached as in `data.storage.objects`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from swav_platform.atomic import replacing
from swav_platform.data.storage.objects import locate
from swav_platform.data.storage.retries import persistently
from swav_platform.errors import UsageError

T = TypeVar("T")

Place = Path | str
Version = Mapping[str, Any]
"""Identifies a state of an object. Only `Storage.swap` reads it."""

SCHEMES = ("s3", "gs")


class Stale(Exception):
    """Another writer has changed the object since it was read."""


@dataclass(frozen=True)
class Stored:
    """Content and version of an object."""

    data: bytes
    version: Version


class Storage(Protocol):
    """A folder of objects. Readers see an object's old content or the new one, never a part.

    Operations raise OSError if a disk fails, and MachineFault if an object store does.
    """

    @property
    def place(self) -> Place: ...

    def get(self, key: str) -> bytes:
        """Raises FileNotFoundError if there is no such object."""

    def look(self, key: str) -> Stored | None:
        """Content and version; None if there is no such object."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Writes an object from memory or from a file on disk. Replaces an existing one."""

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Writes an object only if its version is `expected` (None: only if there is none), and returns its new version.

        Raises Stale otherwise. `data` should differ between writers: equal content counts as written by this call.
        """

    def entries(self, prefix: str = "") -> dict[str, int]:
        """Sizes of all objects by key, sorted. prefix: "" or a key of a folder that ends with "/"."""

    def folders(self) -> list[str]:
        """Names of the folders directly below, sorted."""

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects in the given order. Missing ones are ignored."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL. A Path never is."""
    return isinstance(place, str) and "://" in place


def join(place: Place, *names: str) -> Place:
    """A place below another one."""
    return place.joinpath(*names) if isinstance(place, Path) else "/".join([place.rstrip("/"), *names])


def place_of(text: str) -> Place:
    """A place from its text form."""
    return text if is_url(text) else Path(text)


def base_name(place: Place) -> str:
    return place.name if isinstance(place, Path) else place.rstrip("/").rpartition("/")[2]


def storage_of(place: str | os.PathLike[str]) -> Storage:
    """The storage at a folder or URL, which need not exist. Raises UsageError for a URL of another kind."""
    if not is_url(place):
        return DiskFolder(Path(place))
    url = str(place).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise UsageError(
            f"Runs can't be stored at {url}: use a folder, or a URL of the form s3://BUCKET/FOLDER or gs://BUCKET/FOLDER."
        )
    return ObjectFolder(url)


@dataclass(frozen=True)
class DiskFolder:
    """A folder of a file system."""

    place: Path

    def get(self, key: str) -> bytes:
        return (self.place / key).read_bytes()

    def look(self, key: str) -> Stored | None:
        try:
            data = self.get(key)
        except FileNotFoundError:
            return None
        return Stored(data, _content_version(data))

    def put(self, key: str, data: bytes | Path) -> None:
        with replacing(self.place / key) as aside:
            if isinstance(data, Path):
                shutil.copyfile(data, aside)
            else:
                aside.write_bytes(data)

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        with self._alone():
            found = self.look(key)
            if (None if found is None else found.version) != expected and (found is None or found.data != data):
                raise Stale(key)
            self.put(key, data)
        return _content_version(data)

    def entries(self, prefix: str = "") -> dict[str, int]:
        files = sorted(path for path in (self.place / prefix).rglob("*") if path.is_file())
        return {path.relative_to(self.place).as_posix(): path.stat().st_size for path in files}

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.place.iterdir() if path.is_dir()) if self.place.is_dir() else []

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            (self.place / key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.place.mkdir(parents=True, exist_ok=True)
        with (self.place / ".swap").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _content_version(data: bytes) -> Version:
    return {"sha256": hashlib.sha256(data).hexdigest()}


@dataclass(frozen=True)
class ObjectFolder:
    """A prefix of a bucket. `place` has no "/" at its end."""

    place: str

    def get(self, key: str) -> bytes:
        return self._get(key).data

    def look(self, key: str) -> Stored | None:
        try:
            return self._get(key)
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes | Path) -> None:
        self._do(key, lambda store, path: obstore.put(store, path, data))

    def swap(self, key: str, data: bytes, expected: Version | None) -> Version:
        mode: Any = "create" if expected is None else expected
        try:
            return _version(self._do(key, lambda store, path: obstore.put(store, path, data, mode=mode)))
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            found = self.look(key)  # an answer that got lost on its way may hide that this write succeeded
            if found is None or found.data != data:
                raise Stale(key) from None
            return found.version

    def entries(self, prefix: str = "") -> dict[str, int]:
        def listed(store: Any, path: str) -> dict[str, int]:
            cut = len(path) - len(prefix)
            return {meta["path"][cut:]: meta["size"] for page in obstore.list(store, path) for meta in page}

        return dict(sorted(self._do(prefix, listed).items()))

    def folders(self) -> list[str]:
        found = self._do("", lambda store, path: obstore.list_with_delimiter(store, path.rstrip("/") or None))
        return sorted(base_name(prefix) for prefix in found["common_prefixes"])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                self._do(key, obstore.delete)

    def _get(self, key: str) -> Stored:
        def read(store: Any, path: str) -> Stored:
            answer = obstore.get(store, path)
            return Stored(bytes(answer.bytes()), _version(answer.meta))

        return self._do(key, read)

    def _do(self, key: str, operation: Callable[[Any, str], T]) -> T:
        """Repeats an operation that failed on its way, beyond what obstore repeats by itself."""
        url = f"{self.place}/{key}"
        store, path = locate(url, patient=True)
        return persistently(url, lambda: operation(store, path))


def _version(meta: Any) -> Version:
    """S3 compares ETags, Google Cloud Storage generations."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}
