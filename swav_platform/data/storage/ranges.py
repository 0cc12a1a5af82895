"""One interface to read ranges of local and remote shards."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Protocol, Self

import xxhash
from obstore.exceptions import GenericError

from swav_platform.data.storage.objects import Traffic, info, is_remote, read_range

_AHEAD, _MOST_AHEAD = 4 * 2**10, 2**20


class Ranges(Protocol):
    """An open shard of `size` bytes. bytes_read: the sum over all reads so far."""

    size: int

    @property
    def bytes_read(self) -> int: ...

    def read(self, size: int, offset: int) -> bytes:
        """Returns fewer bytes only at the end of the file. Raises OSError."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_ranges(url: str) -> Ranges:
    """Raises OSError or an exception of obstore."""
    return RemoteFile(url) if is_remote(url) else LocalFile(url)


class LocalFile:
    """version: as that of `stat`, when the file was opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        status = os.fstat(self._descriptor)
        self.size, self.version = status.st_size, str(status.st_mtime_ns)
        self.identity = status.st_dev, status.st_ino, status.st_ctime_ns
        self.bytes_read = 0

    def read(self, size: int, offset: int) -> bytes:
        """Repeats pread, which may return fewer bytes than requested."""
        data = os.pread(self._descriptor, size, offset) if size > 0 else b""
        while 0 < len(data) < size and (part := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += part
        self.bytes_read += len(data)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


_PROBES, _PROBE = 8, 4 * 2**10


def probe(file: LocalFile) -> bytes:
    """A hash of some bytes of a shard, at equal distances, from the first to the last."""
    last = max(0, file.size - _PROBE)
    places = sorted({last * number // (_PROBES - 1) for number in range(_PROBES)})
    return xxhash.xxh3_64_digest(b"".join(file.read(_PROBE, place) for place in places))


class RemoteFile:
    """Serves small reads at ascending offsets, such as a scan over headers, with few requests.

    The latency of a request equals the transfer time of some megabytes, so each request reads ahead. The read-ahead doubles while
    reads are close together (small images) and falls back after a long jump (large images).
    """

    def __init__(self, url: str) -> None:
        self.url, self.traffic = url, Traffic()
        self._ahead = _AHEAD
        self._first, self._data = 0, b""
        try:
            self._data, found = read_range(url, 0, _AHEAD, traffic=self.traffic)
        except GenericError:
            found = info(url)
            if found.size:  # an empty object has no ranges
                raise
        self.size, self.version = found.size, found.version

    @property
    def bytes_read(self) -> int:
        return self.traffic.bytes

    def read(self, size: int, offset: int) -> bytes:
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        if not self._first <= offset <= end <= self._first + len(self._data):
            known = self._first + len(self._data)
            near = 0 <= offset - known <= self._ahead or self._first <= offset < known
            self._ahead = min(2 * self._ahead, _MOST_AHEAD) if near else _AHEAD
            self._first = offset
            last = min(max(end, offset + self._ahead), self.size)
            self._data, _ = read_range(self.url, offset, last, version=self.version, traffic=self.traffic)
        start = offset - self._first
        return self._data[start : start + size]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def stat(url: str) -> tuple[int, str]:
    """Size and version (ETag or modification time) of a shard. Raises OSError or an exception of obstore."""
    if is_remote(url):
        found = info(url)
        return found.size, found.version
    status = os.stat(url)
    return status.st_size, str(status.st_mtime_ns)
