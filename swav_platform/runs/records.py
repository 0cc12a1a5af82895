"""Records of a run in an object store: files that rank 0 writes on its machine, uploaded before each checkpoint.

metrics.jsonl becomes metrics/part-<first>-<end>.jsonl, one part per checkpoint: the lines of steps first … end-1. The parts of the ledger
are files of their own already. Parts that no checkpoint covers do not count and are deleted on resume.

The files on a machine are a working copy in SWAV_CACHE. It is deleted when the run is complete; those of other runs, which may have ended
elsewhere, after KEPT seconds without a step.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from swav_platform.runs.folder import RunFolder
from swav_platform.runs.storage import Storage, storage_of

METRICS, LEDGER = "metrics", "ledger"
KEPT = 30 * 24 * 3600.0
_PART = re.compile(r"\w+/part-(\d+)-(\d+)\.\w+")
_WHOLE = ("health.json",)  # replaced as a whole


class Records:
    """The records of a run that this process writes in `folder.path`."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._steps, self._bytes = 0, 0  # of metrics.jsonl, uploaded
        self._uploaded: set[str] = set()  # parts of the ledger

    def restore(self, steps: int) -> None:
        """Replaces the records on this machine by those of the first `steps` steps, and deletes later ones from the store."""
        delete_abandoned(self._folder)
        storage, here = self._folder.storage, storage_of(self._folder.path)
        parts = [(end, key) for name in (METRICS, LEDGER) for _, end, key in _parts(storage, name)]
        storage.delete(key for end, key in parts if end > steps)
        here.delete(here.entries(f"{LEDGER}/"))
        self._folder.path.mkdir(parents=True, exist_ok=True)
        with self._folder.metrics.open("wb") as file:
            for _, _, key in _chain(_parts(storage, METRICS)):
                file.write(storage.get(key))
            self._steps, self._bytes = steps, file.tell()
        for _, _, key in _parts(storage, LEDGER):
            here.put(key, storage.get(key))
        self._uploaded = set(here.entries(f"{LEDGER}/"))

    def ready(self, steps: int) -> Callable[[], None]:
        """Returns the upload of all records until now, after `steps` steps. It may run later, and more than once."""
        path, first, start = self._folder.metrics, self._steps, self._bytes
        end = path.stat().st_size if path.exists() else 0
        new = set(storage_of(self._folder.path).entries(f"{LEDGER}/")) - self._uploaded
        self._steps, self._bytes = steps, end
        self._uploaded |= new

        def upload() -> None:
            storage = self._folder.storage
            if end > start:
                with path.open("rb") as file:
                    file.seek(start)
                    storage.put(f"{METRICS}/part-{first:09d}-{steps:09d}.jsonl", file.read(end - start))
            for key in sorted(new):
                storage.put(key, self._folder.path / key)

        return upload

    def publish(self) -> None:
        """Uploads what is replaced as a whole."""
        for name in _WHOLE:
            if (self._folder.path / name).is_file():
                self._folder.publish(name)


def discard(folder: RunFolder) -> None:
    """Deletes the working copy of a run in an object store. Everything in it must be uploaded, and recorded in MLflow."""
    if folder.url is not None:
        shutil.rmtree(folder.path, ignore_errors=True)


def delete_abandoned(folder: RunFolder) -> None:
    """Deletes old working copies of runs in object stores, except that of `folder`."""
    for metrics in folder.path.parent.parent.glob("*/*/metrics.jsonl"):
        with suppress(OSError):
            last = max(metrics.stat().st_mtime, metrics.parent.stat().st_mtime)
            if metrics.parent != folder.path and last < time.time() - KEPT:
                shutil.rmtree(metrics.parent, ignore_errors=True)


def metrics_in(storage: Storage) -> Iterator[bytes]:
    """The lines of the metrics in an object store."""
    for _, _, key in _chain(_parts(storage, METRICS)):
        yield from storage.get(key).splitlines()


def _parts(storage: Storage, name: str) -> list[tuple[int, int, str]]:
    """First step, end and key of each part, in order."""
    found = [(match, key) for key in storage.entries(f"{name}/") if (match := _PART.fullmatch(key))]
    return sorted((int(match[1]), int(match[2]), key) for match, key in found)


def _chain(parts: list[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """The parts that follow each other. A worker that had lost the run may have left one that overlaps others."""
    at = 0
    for first, end, key in parts:
        if first == at:
            yield first, end, key
            at = end
