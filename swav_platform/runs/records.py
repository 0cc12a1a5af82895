"""Records of a run in an object store: what rank 0 appends to files on its machine, uploaded in parts before each checkpoint.

metrics.jsonl becomes metrics/part-<first>-<end>.jsonl, one part per checkpoint: the lines of steps first … end-1. Parts that no checkpoint
covers do not count and are deleted on resume.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from swav_platform.runs.folder import RunFolder
from swav_platform.runs.storage import Storage

_PART = re.compile(r"metrics/part-(\d+)-(\d+)\.jsonl")


class Records:
    """The records of a run that this process writes in `folder.path`."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._steps, self._bytes = 0, 0  # uploaded

    def restore(self, steps: int) -> None:
        """Replaces the records on this machine by those of the first `steps` steps, and deletes later ones from the store."""
        storage = self._folder.storage
        parts = _parts(storage)
        storage.delete(key for _, end, key in parts if end > steps)
        self._folder.path.mkdir(parents=True, exist_ok=True)
        with self._folder.metrics.open("wb") as file:
            for _, end, key in parts:
                if end <= steps:
                    file.write(storage.get(key))
            self._bytes = file.tell()
        self._steps = steps

    def ready(self, steps: int) -> Callable[[], None]:
        """Returns the upload of what was recorded until now, after `steps` steps. It may run later, and more than once."""
        path, first, start = self._folder.metrics, self._steps, self._bytes
        end = path.stat().st_size if path.exists() else 0
        self._steps, self._bytes = steps, end

        def upload() -> None:
            if end > start:
                with path.open("rb") as file:
                    file.seek(start)
                    self._folder.storage.put(f"metrics/part-{first:09d}-{steps:09d}.jsonl", file.read(end - start))

        return upload


def metrics_in(storage: Storage) -> Iterator[bytes]:
    """The lines of the metrics in an object store."""
    for _, _, key in _parts(storage):
        yield from storage.get(key).splitlines()


def _parts(storage: Storage) -> list[tuple[int, int, str]]:
    """First step, end and key of each part, in order."""
    found = [(match, key) for key in storage.entries("metrics/") if (match := _PART.fullmatch(key))]
    return sorted((int(match[1]), int(match[2]), key) for match, key in found)
