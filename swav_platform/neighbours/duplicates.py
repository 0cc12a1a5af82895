"""Near-duplicates of a set: groups, which one of each to keep, and the others as an exclusion list for `swav index`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import replacing, write_text
from swav_platform.data.index.exclusions import as_text
from swav_platform.data.sets.read import EmbeddingSet
from swav_platform.neighbours.index import NeighbourIndex
from swav_platform.neighbours.page import Card, page
from swav_platform.neighbours.pairs import Groups, groups

log = logging.getLogger("swav")

Keep = Literal["largest", "first"]

GROUPS_ON_A_PAGE, IMAGES_OF_A_GROUP = 200, 12
_LARGE = 0.2  # of the set: a group of so many samples is no group of duplicates


@dataclass(frozen=True)
class Duplicates:
    """Rows by group, the row to keep first; the largest group first."""

    groups: list[np.ndarray]
    pairs: int

    @property
    def dropped(self) -> np.ndarray:
        """int64: all rows but the ones to keep."""
        return np.concatenate([np.zeros(0, np.int64), *(rows[1:] for rows in self.groups)])


def find_duplicates(
    index: NeighbourIndex,
    threshold: float,
    keep: Keep = "largest",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Duplicates:
    """Groups of samples with equal bytes or a cosine of at least `threshold` to another one of the group.

    keep: of each group the image with the most pixels, or the first one of the index. Excluded samples are left out.
    """
    found = groups(index.vectors, threshold, index.rows["content"].fill_null(0).to_numpy(), progress)
    return Duplicates(_ranked(index.rows, found, keep, index.banned), found.pairs)


def _ranked(rows: pa.Table, found: Groups, keep: Keep, banned: np.ndarray | None) -> list[np.ndarray]:
    sample = rows["sample"].to_numpy()
    pixels = np.zeros(len(sample), np.int64)
    if keep == "largest":
        sides = [rows[name].fill_null(0).to_numpy().astype(np.int64) for name in ("width", "height")]
        pixels = sides[0] * sides[1]
    usable = np.arange(len(sample)) if banned is None else np.flatnonzero(~banned)
    order = usable[np.lexsort((sample[usable], -pixels[usable], found.group[usable]))]
    cuts = np.flatnonzero(np.diff(found.group[order])) + 1
    several = [group for group in np.split(order, cuts) if len(group) > 1]
    return sorted(several, key=lambda group: (-len(group), int(sample[group[0]])))


def write_exclusions(index: NeighbourIndex, rows: np.ndarray, path: Path) -> None:
    """Writes SHARD<tab>KEY lines, in the order of the index."""
    told = index.rows.take(pa.array(np.sort(rows))).select(["shard", "key"]).to_pylist()
    write_text(path, "".join(f"{as_text((line['shard'], line['key']))}\n" for line in told))


def write_groups(index: NeighbourIndex, found: Duplicates, path: Path) -> None:
    """Writes group, sample and similarity (cosine to the image that is kept) of all groups, for viewers."""
    groups = [np.full(len(rows), number) for number, rows in enumerate(found.groups)]
    cosines = [_similarity(index, rows) for rows in found.groups]
    sample = index.rows["sample"].to_numpy()
    columns = {
        "group": pa.array(np.concatenate([np.zeros(0, np.int64), *groups]), pa.int64()),
        "sample": pa.array(sample[np.concatenate([np.zeros(0, np.int64), *found.groups])], pa.int64()),
        "similarity": pa.array(np.concatenate([np.zeros(0, np.float32), *cosines]), pa.float32()),
    }
    with replacing(path) as aside:
        pq.write_table(pa.table(columns), aside)


def _similarity(index: NeighbourIndex, rows: np.ndarray) -> np.ndarray:
    values = index.vectors.rows(rows, release=False)
    cosines: np.ndarray = values @ values[0]
    return cosines


def write_page(embeddings: EmbeddingSet, index: NeighbourIndex, found: Duplicates, threshold: float, path: Path) -> None:
    """Writes the largest groups side by side, the image to keep first."""
    shown = [group[:IMAGES_OF_A_GROUP] for group in found.groups[:GROUPS_ON_A_PAGE]]
    told = index.rows.take(pa.array(np.concatenate([*shown, np.zeros(0, np.int64)]))).to_pylist()
    pictures = embeddings.pictures({line["sample"] for line in told})
    cards, sections = iter(told), []
    for group, whole in zip(shown, found.groups, strict=False):
        cosines = enumerate(_similarity(index, group))
        row = [_card(next(cards), pictures, float(cosine), kept=number == 0) for number, cosine in cosines]
        sections.append((f"{len(whole):,} images", row))
    intro = (
        f"{len(found.groups):,} groups of images with equal bytes or a cosine of at least {threshold}; the first of each is kept."
    )
    write_text(path, page("Near-duplicates", intro, sections))


def _card(line: dict[str, object], pictures: dict[int, bytes], cosine: float, kept: bool) -> Card:
    size = f" {line['width']}×{line['height']}" if line["width"] else ""
    return Card(pictures.get(int(str(line["sample"]))), str(line["key"]), f"{line['shard']}{size} · {cosine:.3f}", kept)


def warn_of_large_groups(found: Duplicates, samples: int) -> None:
    if found.groups and len(found.groups[0]) > _LARGE * samples:
        log.warning(
            f"One group holds {len(found.groups[0]):,} of {samples:,} images: they are alike to this model, not duplicates. "
            f"Raise --threshold, or train longer."
        )
