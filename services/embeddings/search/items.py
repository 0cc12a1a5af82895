"""Images that were added to a set while it is served, and stored samples that were deleted from it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary, finalize

import numpy as np

from services.embeddings.search.log import Contents, Item, Log, added, deleted, read_contents

log = logging.getLogger(__name__)

FOLDER = "-items"  # behind the name of the set's folder
COMPACT = 8 * 2**20
"""Bytes of the log from which on it is compacted, if the part is not larger."""


_CELLS = 16_000_000  # float32 cosines in memory during a search
_BLOCK = 4096  # vectors in one piece of memory


@dataclass(frozen=True)
class _Seen:
    """What a search sees. Writers only add rows behind `count` and set `alive` to False."""

    rows: list[Item]
    blocks: list[np.ndarray]  # float32 [_BLOCK, D] each
    alive: list[np.ndarray]  # bool [_BLOCK] each
    count: int

    def cosines(self, queries: np.ndarray) -> np.ndarray:
        """float32 [n, count]"""
        return np.concatenate([queries @ block.T for block in self.blocks], axis=1)[:, : self.count]

    def living(self) -> np.ndarray:
        """bool [count], a copy."""
        return np.concatenate(self.alive)[: self.count]


class Items:
    """The items of a set. Safe for concurrent use.

    A process takes the folder when it first writes. Another process that has it open sees what was there when it opened it.
    """

    def __init__(self, folder: Path, made_for: str, first: int, dim: int) -> None:
        """folder: of the set. made_for: its digest. first: one above its last sample number. Raises UserError for damaged files."""
        self.made_for, self.first, self._dim = made_for, first, dim
        self._folder = folder.with_name(folder.name + FOLDER)
        self._log: Log | None = None
        self._writing = threading.Lock()
        self._compacting: threading.Thread | None = None
        self._part = 0  # bytes
        self._excluded: frozenset[str] = frozenset()  # keys
        self.compact_at = COMPACT
        self._show(read_contents(self._folder, made_for, first))

    def __len__(self) -> int:
        return len(self._contents.items)

    @property
    def deleted(self) -> frozenset[int]:
        """Numbers of the deleted stored samples."""
        with self._writing:
            return frozenset(self._contents.deleted)

    @property
    def place(self) -> str:
        """What stands for the shard of items in an exclusion list: they are in none."""
        return self._folder.name

    def all(self) -> list[Item]:
        return list(self._contents.items.values())

    def shown(self) -> list[Item]:
        """The items that are not excluded."""
        return [item for item in self.all() if item.key not in self._excluded]

    def known(self, number: int) -> Item | None:
        """The item, excluded or not."""
        return self._contents.items.get(number)

    def get(self, number: int) -> Item | None:
        """The item, if it is not excluded."""
        item = self.known(number)
        return None if item is None or item.key in self._excluded else item

    def with_key(self, key: str) -> list[Item]:
        return [item for item in self.shown() if item.key == key]

    def hides(self, item: Item) -> bool:
        return item.key in self._excluded

    def hide(self, keys: Iterable[str], hidden: bool) -> None:
        """Leaves all items with these keys out of all answers, also those that are added later, or takes them back."""
        with self._writing:
            self._excluded = self._excluded.union(keys) if hidden else self._excluded.difference(keys)
            for item in self.all():
                block, row = divmod(self._rows[item.id], _BLOCK)
                self._seen.alive[block][row] = item.key not in self._excluded

    def add(self, items: Sequence[Item]) -> list[int]:
        """Adds items and returns their ids; those in `items` do not count. Returns when they are on the disk and visible.

        Raises Taken if another process writes to the folder, OSError if the disk refuses, UserError for damaged files.
        """
        with self._writing:
            log = self._taken()
            contents = self._contents
            numbered = [replace(item, id=contents.next + place) for place, item in enumerate(items)]
            log.append(added(numbered))
            contents.next += len(numbered)
            self._append(numbered)
            self._compact_if_large(log)
            return [item.id for item in numbered]

    def delete(self, number: int) -> bool:
        """Deletes an item, or a stored sample; whether there was one. Returns when that is on the disk. Raises as `add`."""
        with self._writing:
            log = self._taken()
            contents = self._contents
            known = 0 <= number < self.first and number not in contents.deleted
            if number not in contents.items and not known:
                return False
            log.append(deleted([number]))
            if number in contents.items:
                del contents.items[number]
                block, row = divmod(self._rows.pop(number), _BLOCK)
                self._seen.alive[block][row] = False
            else:
                contents.deleted.add(number)
            self._compact_if_large(log)
            return True

    def nearest(self, queries: np.ndarray, k: int, meets: Callable[[Item], bool] | None = None) -> list[list[tuple[Item, float]]]:
        """The k nearest items and their cosines, best first, for each unit-length query of [n, D]."""
        seen = self._seen
        if not seen.count:
            return [[] for _ in queries]
        allowed = seen.living()
        if meets is not None:
            for row in np.flatnonzero(allowed):
                allowed[row] = meets(seen.rows[row])
        k, at_once = min(k, int(np.count_nonzero(allowed))), max(1, _CELLS // seen.count)
        found = []
        for first in range(0, len(queries), at_once):
            for cosines in seen.cosines(queries[first : first + at_once]):
                rows = np.argsort(np.where(allowed, -cosines, 2), kind="stable")[:k]
                found.append([(seen.rows[row], float(cosines[row])) for row in rows])
        return found

    def compact(self, step: Callable[[str], None] = lambda what: None) -> None:
        """Replaces the logs by one file. Additions and deletions go on meanwhile. step: hears of each step."""
        with self._writing:
            log = self._taken()
            number, contents = log.number, self._contents
            log.rotate(contents.next)
            copy = Contents(contents.next, dict(contents.items), set(contents.deleted))
        self._part = log.compact(number, copy, step)
        with self._writing:
            if self._seen.count > 2 * len(self) + _BLOCK:  # most rows are of deleted items
                self._show(self._contents)

    def _compact_if_large(self, log: Log) -> None:
        busy = self._compacting is not None and self._compacting.is_alive()
        if log.size > max(self.compact_at, self._part) and not busy:
            self._compacting = threading.Thread(target=self._compact_or_tell, name="compact", daemon=True)
            self._compacting.start()

    def _compact_or_tell(self) -> None:
        try:
            self.compact()
        except Exception as error:  # nothing is lost: the logs stay
            log.error("the added items in %s can't be compacted, the log grows: %s", self._folder, error)

    def _taken(self) -> Log:
        if self._log is None:
            self._log = Log(self._folder, self.made_for, self.first)
            finalize(self, self._log.close)
            self._show(self._log.contents)  # another process may have written meanwhile
        return self._log

    def _show(self, contents: Contents) -> None:
        self._contents = contents
        self._rows: dict[int, int] = {}
        self._seen = _Seen([], [], [], 0)
        self._append(list(contents.items.values()))

    def _append(self, items: Sequence[Item]) -> None:
        """Makes items visible to searches. The block that is searched holds the only copy of a vector."""
        seen = self._seen
        for number, item in enumerate(items, seen.count):
            block, row = divmod(number, _BLOCK)
            if block == len(seen.blocks):
                seen.blocks.append(np.zeros((_BLOCK, self._dim), np.float32))
                seen.alive.append(np.zeros(_BLOCK, bool))
            seen.blocks[block][row] = item.vector
            shown = replace(item, vector=seen.blocks[block][row])
            seen.rows.append(shown)
            seen.alive[block][row] = item.key not in self._excluded
            self._rows[item.id] = number
            self._contents.items[item.id] = shown
        self._seen = replace(seen, count=seen.count + len(items))


_OPEN: WeakValueDictionary[Path, Items] = WeakValueDictionary()
_OPENING = threading.Lock()


def open_items(folder: Path, made_for: str, first: int, dim: int) -> Items:
    """The items of a set; the same object for all models of this process that answer from it."""
    place = folder.resolve()
    with _OPENING:
        held = _OPEN.get(place)
        if held is None or held.made_for != made_for:
            held = Items(place, made_for, first, dim)
            _OPEN[place] = held
        return held
