"""What people say about a set: names of clusters, and samples that must not be shown or trained on.

SET/cluster-names.json   {"format": 1, "names": {"12": "sunsets"}}
SET/exclude.txt          lines `shard<tab>key`, as `swav index --exclude` takes them
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from swav_platform.atomic import write_text
from swav_platform.data.index.exclusions import Exclusions, Line, as_text
from swav_platform.errors import UserError

NAMES, EXCLUDE = "cluster-names.json", "exclude.txt"
LONGEST = 100  # characters of a name
_FORMAT = 1


@dataclass
class Notes:
    """The notes of a set in a folder. Each change is on the disk before it is visible.

    lines: those of exclude.txt, also of samples that the set does not have.
    """

    folder: Path | None  # None: a set in a bucket; its notes can't be changed
    names: dict[int, str] = field(default_factory=dict)
    lines: set[Line] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def writable(self) -> bool:
        return self.folder is not None

    def rename(self, cluster: int, name: str | None) -> None:
        """Gives the cluster a name, or takes it away."""
        with self._lock:
            names = {**self.names, cluster: name} if name else {c: n for c, n in self.names.items() if c != cluster}
            told = {"format": _FORMAT, "names": {str(c): n for c, n in sorted(names.items())}}
            write_text(self._path(NAMES), json.dumps(told, ensure_ascii=True, indent=1) + "\n")
            self.names = names

    def exclude(self, lines: Iterable[Line], excluded: bool) -> None:
        """Adds lines to the exclusion list, or takes them out of it."""
        with self._lock:
            changed = self.lines | set(lines) if excluded else self.lines - set(lines)
            if changed:
                write_text(self._path(EXCLUDE), listed(changed))
            else:  # an empty list is refused by `swav index`
                self._path(EXCLUDE).unlink(missing_ok=True)
            self.lines = changed

    def _path(self, name: str) -> Path:
        if self.folder is None:
            raise UserError("The embedding set is in a bucket, where the service does not write. Copy the set to a folder.")
        return self.folder / name


def listed(lines: Iterable[Line]) -> str:
    """The text of an exclusion list."""
    return "".join(f"{text}\n" for text in sorted(as_text(line) for line in lines))


def read_notes(folder: Path | None) -> Notes:
    """Raises UserError for files that cannot be read."""
    if folder is None:
        return Notes(None)
    names: dict[int, str] = {}
    if (path := folder / NAMES).is_file():
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["format"] != _FORMAT:
                raise ValueError(f"format {told['format']}; this version reads format {_FORMAT}")
            names = {int(cluster): str(name) for cluster, name in told["names"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not hold names of clusters ({error}). Repair or delete it.") from error
    path = folder / EXCLUDE
    lines = set(Exclusions.of_file(path).lines) if path.is_file() and path.stat().st_size else set()
    return Notes(folder, names, lines)
