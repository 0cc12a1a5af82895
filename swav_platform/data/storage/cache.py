"""Local copies of shards that can't be read by ranges: compressed tars, servers without ranges, output of commands.

Such a shard is fetched whole, unpacked into a cache on the local disk, and read there. The least recently used copies are evicted
first. SWAV_CACHE: folder, default ~/.cache/swav. SWAV_CACHE_BYTES: size limit, default 50 GB.
"""

from __future__ import annotations

import bz2
import fcntl
import gzip
import hashlib
import io
import lzma
import os
import subprocess
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from obstore.exceptions import BaseError

from swav_platform.atomic import cure, replacing
from swav_platform.data.storage.objects import Changed, is_remote, read_whole
from swav_platform.errors import UserError

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

COMMAND = "pipe:"
"""Prefix of the URL of a shell command."""


def is_command(url: str) -> bool:
    return url.startswith(COMMAND)


def local_copy(url: str, version: str) -> Path:
    """The path of a plain tar on the local disk with the content of `url`, which is fetched if necessary.

    Raises OSError, EOFError or an exception of obstore if the shard can't be read, and UserError if the cache can't be written.
    """
    folder = cache_folder()
    path = folder / f"{hashlib.sha256(f'{url} {version}'.encode()).hexdigest()[:32]}.tar"
    with _locked(path):
        if not path.exists():
            _evict(folder)
            _fetch(url, path, version)
        os.utime(path)
    return path


def cache_folder() -> Path:
    return Path(os.environ.get("SWAV_CACHE") or Path.home() / ".cache" / "swav")


class _SourceFailed(Exception):
    """Wraps an error of the source, to tell it from an error when writing the copy."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _fetch(url: str, path: Path, version: str) -> None:
    try:
        with replacing(path) as aside, aside.open("wb") as out:
            for piece in _content(url, version):
                out.write(piece)
    except _SourceFailed as failed:
        raise failed.error from None


def _content(url: str, version: str) -> Iterator[bytes]:
    """The unpacked content of a shard, up to the first damaged byte. The scan of the tar then reports the truncation."""
    started = False
    try:
        with _opened(url, version) as packed, closing(_unpacked(packed)) as pieces:
            for piece in pieces:
                started = True
                yield piece
    except (OSError, EOFError, zlib.error, lzma.LZMAError, BaseError) as error:
        if isinstance(error, BaseError | Changed) or getattr(
            error, "errno", None
        ):  # bzip2, gzip and zstd raise OSError without errno for damage
            raise _SourceFailed(error) from None
        if not started:
            raise _SourceFailed(EOFError("it is damaged from the first byte")) from None


def _unpacked(packed: io.RawIOBase) -> Generator[bytes, None, None]:
    with io.BufferedReader(packed, _PIECE) as reader:
        head = reader.peek(16)[:16]
        unpack = next((kind for magic, kind in _UNPACK if head.startswith(magic)), None)
        source: Any = unpack(reader) if unpack else reader
        read = getattr(source, "read1", source.read)  # `read` would lose the bytes before the damage
        yield from iter(lambda: read(_PIECE), b"")


@contextmanager
def _opened(url: str, version: str) -> Iterator[Any]:
    if is_remote(url):
        yield _Pieces(read_whole(url, version))
    elif is_command(url):
        yield _Pieces(_output(url.removeprefix(COMMAND)))
    else:
        with open(url, "rb", buffering=0) as file:
            if version not in ("", str(os.fstat(file.fileno()).st_mtime_ns)):
                raise Changed(f"{url} has changed")
            yield file


def _output(command: str) -> Iterator[bytes]:
    with subprocess.Popen(command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        out: Any = process.stdout
        yield from iter(lambda: out.read(_PIECE), b"")
    if code := process.returncode:
        raise _SourceFailed(OSError(f"the command failed with {f'exit code {code}' if code > 0 else f'signal {-code}'}"))


class _Pieces(io.RawIOBase):
    """A readable file over an iterator of bytes."""

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
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock, so that concurrent tasks fetch a shard once. Creates the folder; raises UserError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise UserError(
            f"The shard cache {path.parent} can't be used ({error.strerror}): {cure(error)} or set SWAV_CACHE to another folder."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _evict(folder: Path) -> None:
    """Deletes the least recently used copies. A process that has one open can still read it."""
    most = int(os.environ.get("SWAV_CACHE_BYTES", _BYTES))
    kept = 0
    with suppress(OSError):
        for entry in sorted(folder.glob("*.tar"), key=lambda path: -path.stat().st_mtime):
            kept += entry.stat().st_size
            if kept > most:
                entry.unlink(missing_ok=True)
