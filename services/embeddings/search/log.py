"""The folder of added items, and how a process that may die at any moment changes it.

SET-items/log-00000003    additions and deletions, each on the disk before its request is answered
          part-00000002   all that the logs up to number 2 left; it appears under this name when it is complete
          lock            held by the process that writes

The contents are the highest part and the logs with higher numbers. Older files are remains of a process that died.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from services.embeddings.search.frames import frame, read_frames
from swav_platform.atomic import replacing, sync_folder
from swav_platform.errors import UserError

FORMAT = 1
_TRIES = 5  # reads of a folder that another process changes meanwhile
_IN_A_FRAME = 1024  # items of a part


@dataclass(frozen=True)
class Item:
    """An added image. score: cosine to the prototype of its cluster, -1 without prototypes."""

    id: int
    key: str
    label: str | None
    cluster: int
    score: float
    thumbnail: bytes | None
    vector: np.ndarray  # float32 [D], unit length


@dataclass
class Contents:
    """What the files hold. deleted: numbers of stored samples. next: the id of the next item; ids are never used twice."""

    next: int
    items: dict[int, Item] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    number: int = 0  # of the last log; 0: there is none
    end: int = 0  # bytes of it that are whole


class Taken(Exception):
    """Another process writes to the folder."""


def added(items: list[Item]) -> bytes:
    """The frame of an addition."""
    told = [[i.id, i.key, i.label, i.cluster, i.score, None if i.thumbnail is None else len(i.thumbnail)] for i in items]
    vectors = np.array([item.vector for item in items], "<f4")
    return frame({"add": told, "dim": vectors.shape[1]}, vectors.tobytes() + b"".join(item.thumbnail or b"" for item in items))


def deleted(numbers: list[int]) -> bytes:
    """The frame of a deletion of items and stored samples."""
    return frame({"delete": numbers})


def read_contents(folder: Path, made_for: str, first: int) -> Contents:
    """Reads a folder without changing it. made_for: digest of the set; first: the id of the first item.

    Raises UserError for damaged files, and for those of another set.
    """
    for left in reversed(range(_TRIES)):
        try:
            return _read(folder, made_for, first)
        except FileNotFoundError:
            if left:
                time.sleep(0.05)
    raise UserError(f"A file of the added items in {folder} is missing: restore the folder from a backup, or move it away.")


def _read(folder: Path, made_for: str, first: int) -> Contents:
    contents = Contents(first)
    part = max(numbered(folder, "part"), default=0)
    logs = [number for number in numbered(folder, "log") if number > part]
    if logs != list(range(part + 1, part + 1 + len(logs))) or (part and not logs):
        raise FileNotFoundError
    if part:
        _replay(folder / name("part", part), contents, made_for, first, torn=False)
    for number in logs:
        contents.end = _replay(folder / name("log", number), contents, made_for, first, torn=number == logs[-1])
        contents.number = number
    return contents


def _replay(path: Path, contents: Contents, made_for: str, first: int, *, torn: bool) -> int:
    whole = 0
    for (told, blob), end in read_frames(path, torn=torn):
        whole = end
        if "format" in told:
            _check(path, told, made_for)
            contents.next = max(contents.next, told["next"])
            contents.deleted.update(told["deleted"])
        elif "add" in told:
            for item in _items(told, blob):
                contents.items[item.id] = item
                contents.next = max(contents.next, item.id + 1)
        else:
            for number in told["delete"]:
                contents.items.pop(number, None)
                if number < first:
                    contents.deleted.add(number)
    return whole


def _items(told: dict[str, Any], blob: bytes) -> list[Item]:
    lines, dim = told["add"], told["dim"]
    vectors = np.frombuffer(blob, "<f4", len(lines) * dim).reshape(-1, dim)
    at, found = vectors.nbytes, []
    for (number, key, label, cluster, score, size), vector in zip(lines, vectors, strict=True):
        thumbnail = None if size is None else blob[at : at + size]
        at += size or 0
        found.append(Item(number, key, label, cluster, score, thumbnail, vector))
    return found


def _check(path: Path, told: dict[str, Any], made_for: str) -> None:
    if told["format"] != FORMAT:
        raise UserError(
            f"{path} has format {told['format']}, and this version reads format {FORMAT}. Use the version that wrote it."
        )
    if told["set"] != made_for:
        raise UserError(
            f"The items in {path.parent} were added to another version of the embedding set: their ids and vectors do not fit "
            f"this one. Move the folder away and add the items again."
        )


def name(kind: str, number: int) -> str:
    return f"{kind}-{number:08d}"


def numbered(folder: Path, kind: str) -> list[int]:
    """Numbers of the logs or parts, ascending."""
    if not folder.is_dir():
        return []
    names = (path.name.removeprefix(f"{kind}-") for path in folder.iterdir() if path.name.startswith(f"{kind}-"))
    return sorted(int(number) for number in names if number.isdecimal())


class Log:
    """The end of the last log, where this process writes."""

    def __init__(self, folder: Path, made_for: str, first: int) -> None:
        """Takes the folder for this process; it stays taken until the process ends. Raises Taken, OSError or UserError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._made_for = folder, made_for
        self._file: IO[bytes] | None = None
        self._lock = (folder / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise Taken from None
        self.contents = read_contents(folder, made_for, first)  # as the process before this one left them
        for remains in folder.glob("_*"):
            remains.unlink()
        part = max(numbered(folder, "part"), default=0)
        self._forget(part)
        if self.contents.number > part and self.contents.end:
            self.number, self.size = self.contents.number, self.contents.end
            self._cut()
        else:
            self.number = max(part, self.contents.number - 1)
            self.rotate(self.contents.next)

    def rotate(self, following: int) -> None:
        """Begins the next log. following: the id of the next item. Raises OSError; then the log before it goes on."""
        path, head = self._folder / name("log", self.number + 1), self._head(following, [])
        file = path.open("wb")
        try:
            _write(file, head)
            sync_folder(self._folder)
        except OSError:
            with suppress(OSError):
                file.close()
            path.unlink(missing_ok=True)
            raise
        if self._file is not None:
            self._file.close()
        self._file, self.number, self.size = file, self.number + 1, len(head)

    def append(self, data: bytes) -> None:
        """Returns when the frame is on the disk. Raises OSError; then no part of it stays."""
        file = self._file or self._cut()
        try:
            _write(file, data)
        except OSError:
            with suppress(OSError):
                file.close()
            self._file = None
            with suppress(OSError):  # else before the next frame
                self._cut()
            raise
        self.size += len(data)

    def close(self) -> None:
        """Leaves the folder to other processes."""
        if self._file is not None:
            self._file.close()
        self._lock.close()

    def _cut(self) -> IO[bytes]:
        """Opens the log and cuts off what is not whole."""
        file = (self._folder / name("log", self.number)).open("r+b")
        try:
            file.truncate(self.size)
            os.fsync(file.fileno())
            file.seek(self.size)
        except OSError:
            file.close()
            raise
        self._file = file
        return file

    def compact(self, number: int, contents: Contents, step: Callable[[str], None] = lambda what: None) -> int:
        """Writes the part that replaces the logs up to `number`, whose contents are given, and returns its bytes.

        May run while frames are appended to later logs. step: hears of each step.
        """
        path, items = self._folder / name("part", number), list(contents.items.values())
        with replacing(path) as aside, aside.open("wb") as file:
            file.write(self._head(contents.next, sorted(contents.deleted)))
            for first in range(0, len(items), _IN_A_FRAME):
                file.write(added(items[first : first + _IN_A_FRAME]))
                step("wrote")
        sync_folder(self._folder)
        step("renamed")
        self._forget(number)
        return path.stat().st_size

    def _head(self, following: int, gone: list[int]) -> bytes:
        return frame({"format": FORMAT, "set": self._made_for, "next": following, "deleted": gone})

    def _forget(self, part: int) -> None:
        """Deletes what a part replaces."""
        for number in numbered(self._folder, "log"):
            if number <= part:
                (self._folder / name("log", number)).unlink()
        for number in numbered(self._folder, "part"):
            if number < part:
                (self._folder / name("part", number)).unlink()


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
