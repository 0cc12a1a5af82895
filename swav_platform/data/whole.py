"""Shards that can't be read by ranges: compressed ones, those of servers without ranges, output of commands.

Such a shard is fetched whole, unpacked into a cache on the local disk, and read there. The cache is bounded: what
was not used for longest goes first. Folder: SWAV_CACHE, else ~/.cache/swav; bytes: SWAV_CACHE_BYTES, else 50 GB.
"""

from __future__ import annotations

import bz2
import fcntl
import gzip
import hashlib
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from swav_platform.atomic import replacing
from swav_platform.data.storage import is_remote, read_whole

_BYTES = 50 * 10**9
_PIECE = 2**20


def _gunzip(packed: Any) -> Any:
    return gzip.GzipFile(fileobj=packed)


def _unzstd(packed: Any) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")


_UNPACK: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", _gunzip),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", _unzstd),
)


def is_command(url: str) -> bool:
    return url.startswith("pipe:")


def local_copy(url: str, version: str) -> Path:
    """A plain tar on the local disk with what `url` holds; fetched when it is not there yet.

    Raises OSError, EOFError or an exception of obstore for a shard that can't be read to its end.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(f'{url} {version}'.encode()).hexdigest()[:32]}.tar"
    with _one_at_a_time(path):
        if not path.exists():
            _make_room(folder)
            _fetch(url, path)
        os.utime(path)
    return path


def _fetch(url: str, path: Path) -> None:
    try:
        with _opened(url) as packed, replacing(path) as aside, aside.open("wb") as out:
            _copy(packed, out)
    except _CommandFailed as error:
        raise OSError(str(error)) from None


class _CommandFailed(Exception):
    """No OSError, which would be one of writing the copy."""


def cache_folder() -> Path:
    return Path(os.environ.get("SWAV_CACHE") or Path.home() / ".cache" / "swav")


def _copy(packed: Any, out: BinaryIO) -> None:
    """What comes before damage stays: the walk over the tar finds out where it ends."""
    reader: Any = io.BufferedReader(packed, _PIECE)
    head = reader.peek(16)[:16]
    unpack = next((kind for magic, kind in _UNPACK if head.startswith(magic)), None)
    source = unpack(reader) if unpack else reader
    read = getattr(source, "read1", source.read)  # `read` would lose what it has when damage comes
    try:
        while piece := read(_PIECE):
            out.write(piece)
    except (zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile):
        if not out.tell():
            raise EOFError("it is damaged from its beginning on") from None


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    if is_remote(url):
        yield _Pieces(read_whole(url))
        return
    if is_command(url):
        yield _Pieces(_output(url))
        return
    with open(url, "rb") as file:
        yield file


def _output(command: str) -> Iterator[bytes]:
    from webdataset.gopen import gopen  # brings torch: only where it is needed

    stream = gopen(command)
    try:
        yield from iter(lambda: stream.read(_PIECE), b"")
        stream.close()
    except OSError as error:
        code = re.search(r"exit (-?\d+)", str(error))
        raise _CommandFailed(f"its command ended with {f'exit code {code[1]}' if code else error}") from None
    finally:
        with suppress(OSError):
            stream.close()


class _Pieces(io.RawIOBase):
    """Bytes objects one after the other as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not len(self._rest):
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Two data tasks that want one shard fetch it once."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_room(folder: Path) -> None:
    """Who has an evicted file open reads on: its bytes go when it is closed."""
    most = int(os.environ.get("SWAV_CACHE_BYTES", _BYTES))
    kept = 0
    with suppress(OSError):
        for entry in sorted(folder.glob("*.tar"), key=lambda path: -path.stat().st_mtime):
            kept += entry.stat().st_size
            if kept > most:
                entry.unlink(missing_ok=True)
