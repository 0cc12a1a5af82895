"""What the page shows of a set: its samples, numbers of its clusters, its map, and people's notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from services.embeddings.explorer import plane
from services.embeddings.explorer.notes import Notes, read_notes
from services.embeddings.explorer.overview import Overview, overview
from services.embeddings.store import Store
from swav_platform.data.index.exclusions import Exclusions, Line
from swav_platform.data.index.names import is_end_of


@dataclass
class Collection:
    """`store` hides the samples that the notes exclude. folder: of the set, None for one in a bucket."""

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
        labelled = "label" in store.table.column_names and store.table["label"].null_count < store.samples
        kinds = store.table["label" if labelled else "shard"].to_pylist()
        return overview(store.clusters, store.scores, kinds, len(store.sizes))

    @cached_property
    def xy(self) -> np.ndarray:
        return plane.positions(self.folder, self.samples, self.store.vectors)

    def rows(self, samples: Iterable[int]) -> np.ndarray:
        """Rows of the sample numbers; unknown ones are left out."""
        wanted = np.fromiter(samples, np.int64)
        at = np.searchsorted(self.samples, wanted)
        at = np.minimum(at, len(self.samples) - 1)
        return np.asarray(at[self.samples[at] == wanted])

    def map(self) -> bytes:
        """The points of the samples that are not excluded."""
        shown = ~self.store.hidden
        return plane.packed(self.xy[shown], self.store.clusters[shown], self.samples[shown])

    def item(self, row: int, score: float | None, *, thumbnail: bool) -> dict[str, Any]:
        """A sample as the page takes it."""
        own = self.store.scores[row] if score is None else score
        return {**self.store.sample(row, own, thumbnail=thumbnail), "excluded": bool(self.store.hidden[row])}

    def exemplars(self, cluster: int, count: int, *, thumbnail: bool) -> list[dict[str, Any]]:
        return [self.item(int(row), None, thumbnail=thumbnail) for row in self.store.members(cluster, count)]

    def lines(self, rows: Iterable[int]) -> list[Line]:
        """The rows as lines of an exclusion list."""
        shard, key = self.store.table["shard"], self.store.table["key"]
        return [(shard[int(row)].as_py(), key[int(row)].as_py()) for row in rows]

    def exclude(self, samples: Iterable[int], excluded: bool) -> None:
        """Adds the samples to the exclusion list, or takes them out; from then on the service hides or shows them."""
        rows = self.rows(samples)
        lines = self.lines(rows)
        asked = set(lines)
        # A list from elsewhere may name a shard by its path or not at all.
        same = {line for line in self.notes.lines if not excluded and any(_means(line, sample) for sample in asked)}
        self.notes.exclude(same | asked, excluded)
        self.store.hide(rows, excluded)


def _means(line: Line, sample: Line) -> bool:
    return line[1] == sample[1] and (line[0] is None or is_end_of(line[0], sample[0] or ""))


def collect(store: Store, folder: Path | None) -> Collection:
    """Reads the notes and hides what they exclude. Raises UserError for notes that cannot be read."""
    notes = read_notes(folder)
    if notes.lines:
        listed = Exclusions(notes.lines)
        keys, shards = store.table["key"].to_pylist(), store.table["shard"].to_pylist()
        store.hide(np.flatnonzero([listed.may_cover(shard, key) for shard, key in zip(shards, keys, strict=True)]), True)
    return Collection(store, folder, notes)


def found(names: dict[int, str], search: str, order: Sequence[int]) -> list[int]:
    """Clusters of `order` whose number begins with, or whose name contains, the text."""
    if not search:
        return list(order)
    text = search.casefold()
    return [c for c in order if str(c).startswith(text) or text in names.get(int(c), "").casefold()]
