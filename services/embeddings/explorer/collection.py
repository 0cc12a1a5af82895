"""What the page shows of a set: its samples and items, numbers of its clusters, its map, and people's notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from services.embeddings.explorer.notes import Notes, read_notes
from services.embeddings.explorer.overview import Overview, overview
from services.embeddings.explorer.plane import Later, Plane, packed, plane
from services.embeddings.search.find import told
from services.embeddings.search.log import Item
from services.embeddings.search.members import Members
from services.embeddings.store import Store
from swav_platform.data.index.exclusions import Exclusions, Line
from swav_platform.data.index.names import is_end_of


@dataclass
class Collection:
    """`store` hides what the notes exclude. folder: of the set, None for one in a bucket."""

    store: Store
    folder: Path | None
    notes: Notes

    @cached_property
    def samples(self) -> np.ndarray:
        """int64 [N], ascending: sample numbers of the rows."""
        return np.asarray(self.store.table["sample"].to_numpy(), np.int64)

    @cached_property
    def overview(self) -> Overview:
        store = self.store
        labelled = "label" in store.table.column_names and store.table["label"].null_count < len(store.clusters)
        kinds = store.table["label" if labelled else "shard"].to_pylist()
        return overview(store.clusters, store.scores, kinds, len(store.sizes))

    @cached_property
    def plane(self) -> Later:
        return Later(lambda: plane(self.folder, self.samples, self.store))

    @property
    def excluded(self) -> int:
        """How many samples and items are hidden."""
        items = self.store.items
        return int(np.count_nonzero(self.store.hidden)) + len(items.all()) - len(items.shown())

    def rows(self, samples: Iterable[int]) -> np.ndarray:
        """Rows of the sample numbers; unknown ones are left out."""
        wanted = np.fromiter(samples, np.int64)
        at = np.searchsorted(self.samples, wanted)
        at = np.minimum(at, len(self.samples) - 1)
        return np.asarray(at[self.samples[at] == wanted])

    def find(self, numbers: Sequence[int]) -> list[int | Item]:
        """Rows of samples, and items, with these numbers, excluded ones too; unknown ones are left out."""
        at = np.minimum(np.searchsorted(self.samples, numbers), len(self.samples) - 1)
        stored = self.samples[at] == np.array(numbers)
        held = zip(numbers, at.tolist(), stored.tolist(), strict=True)
        found = [row if known else self.store.items.known(number) for number, row, known in held]
        return [what for what in found if what is not None]

    def map(self, plane: Plane) -> bytes:
        """The points of samples and items that are not excluded."""
        store, items = self.store, self.store.items.shown()
        xy, clusters, samples = plane.xy[~store.hidden], store.clusters[~store.hidden], self.samples[~store.hidden]
        if items:
            xy = np.concatenate([xy, plane.places(store, np.stack([item.vector for item in items]))])
            clusters = np.concatenate([clusters, np.array([item.cluster for item in items], np.int32)])
            samples = np.concatenate([samples, np.array([item.id for item in items])])
        return packed(xy, clusters, samples)

    def hides(self, what: int | Item) -> bool:
        return self.store.items.hides(what) if isinstance(what, Item) else bool(self.store.hidden[what])

    def item(self, what: int | Item, score: float | None, *, thumbnail: bool) -> dict[str, Any]:
        """A row or an item as the page takes it. What is excluded has no picture."""
        own = what.score if isinstance(what, Item) else float(self.store.scores[what])
        hidden = self.hides(what)
        shown = told(self.store, what, own if score is None else score, thumbnail=thumbnail and not hidden)
        return {**shown, "excluded": hidden}

    def exemplars(self, members: Members, cluster: int, count: int, *, thumbnail: bool) -> list[dict[str, Any]]:
        return [self.item(what, score, thumbnail=thumbnail) for what, score in members.best(cluster, count)]

    def lines(self, found: Iterable[int | Item]) -> list[Line]:
        """Rows and items as lines of an exclusion list."""
        shard, key = self.store.table["shard"], self.store.table["key"]
        return [
            (self.store.items.place, what.key) if isinstance(what, Item) else (shard[what].as_py(), key[what].as_py())
            for what in found
        ]

    def exclude(self, numbers: Sequence[int], excluded: bool) -> None:
        """Adds samples and items to the exclusion list, or takes them out; from then on the service hides or shows them."""
        found = self.find(numbers)
        asked = set(self.lines(found))
        # A list from elsewhere may name a shard by its path or not at all.
        same = {line for line in self.notes.lines if not excluded and any(_means(line, sample) for sample in asked)}
        self.notes.exclude(same | asked, excluded)
        self.store.hide(np.array([what for what in found if not isinstance(what, Item)], np.int64), excluded)
        self.store.items.hide([what.key for what in found if isinstance(what, Item)], excluded)


def _means(line: Line, sample: Line) -> bool:
    return line[1] == sample[1] and (line[0] is None or is_end_of(line[0], sample[0] or ""))


def collect(store: Store, folder: Path | None) -> Collection:
    """Reads the notes and hides what they exclude. Raises UserError for notes that cannot be read."""
    notes = read_notes(folder)
    if notes.lines:
        listed = Exclusions(notes.lines)
        keys, shards = store.table["key"].to_pylist(), store.table["shard"].to_pylist()
        store.hide(np.flatnonzero([listed.may_cover(shard, key) for shard, key in zip(shards, keys, strict=True)]), True)
        store.items.hide([key for shard, key in notes.lines if shard is None or is_end_of(shard, store.items.place)], True)
    return Collection(store, folder, notes)


def found(names: dict[int, str], search: str, order: Sequence[int]) -> list[int]:
    """Clusters of `order` whose number begins with, or whose name contains, the text."""
    if not search:
        return list(order)
    text = search.casefold()
    return [c for c in order if str(c).startswith(text) or text in names.get(int(c), "").casefold()]
