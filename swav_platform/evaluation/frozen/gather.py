"""One pass over train and test images gives all that evaluations of frozen features need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from swav_platform.errors import UserError
from swav_platform.evaluation.features import subset, unit
from swav_platform.evaluation.frozen.labels import numbered
from swav_platform.evaluation.frozen.store import Selection, Source, Stored, one_pass
from swav_platform.evaluation.frozen.taps import extractor
from swav_platform.evaluation.subject import Side, Subject

TRAINED, RANDOM = "trained", "random_init"
_TRANSFORM = "resize-8/7-centre-{size}"  # of models.package.preprocess


@dataclass(frozen=True)
class Labelled:
    """Features of one side with a label each. Rows without a label are left out of `values` and `labels`."""

    stored: Stored
    every: np.ndarray  # int64, one for each row of `stored`; -1 without a label
    keys: list[str]  # of all rows of `stored`

    @cached_property
    def values(self) -> np.ndarray:
        """float32 [n, D] as the encoder returns them."""
        return self.stored.values[self.every >= 0]

    @cached_property
    def units(self) -> np.ndarray:
        """float32 [n, D], unit length."""
        return unit(self.values)

    @cached_property
    def labels(self) -> np.ndarray:
        return self.every[self.every >= 0]

    @cached_property
    def maps(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Maps of stem and stages, and the labels of their rows."""
        labels = self.every[self.stored.mapped]
        return {name: rows[labels >= 0] for name, rows in self.stored.maps.items()}, labels[labels >= 0]


@dataclass(frozen=True)
class Frozen:
    """Features of both sides by one encoder."""

    train: Labelled
    test: Labelled
    classes: list[str]

    @property
    def refused(self) -> Counter[str]:
        return self.train.stored.refused + self.test.stored.refused


def gather(
    subject: Subject,
    sides: tuple[Side, Side],
    *,
    random_init: bool = True,
    maps: int | None = 0,
    need_labels: bool = True,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Frozen]:
    """Features by the trained encoder and, if wanted, by the same one at random initialisation.

    maps: images of each side whose maps are kept; None for all. Raises UserError if a side has no readable image with a label.
    """
    transform = _TRANSFORM.format(size=subject.input_size)
    sources = {TRAINED: Source(subject.digest, transform, extractor(subject.package.encoder, subject.input_size, subject.device))}
    if random_init:
        name = f"random {subject.model.model_dump_json()} {subject.seed}"
        sources[RANDOM] = Source(name, transform, extractor(subject.untrained(), subject.input_size, subject.device))
    found = []
    for side in sides:
        mapped = frozenset(side.numbers) if maps is None else _drawn(side, maps, subject.seed)
        chosen = Selection(side.numbers, mapped)
        found.append(one_pass(subject.out / "features", side.index, chosen, sources, subject.images, progress))
    names = [_names(side, stored[TRAINED]) for side, stored in zip(sides, found, strict=True)]
    for side, (labels, _), stored in zip(sides, names, found, strict=True):
        _check(side, labels, stored[TRAINED].refused, need_labels)
    train, test, classes = numbered(names[0][0], names[1][0])
    return {
        source: Frozen(Labelled(found[0][source], train, names[0][1]), Labelled(found[1][source], test, names[1][1]), classes)
        for source in sources
    }


def _drawn(side: Side, count: int, seed: int) -> frozenset[int]:
    """`count` of the side's samples: the first that a permutation of the whole index by `seed` reaches."""
    if count >= len(side.numbers):
        return frozenset(side.numbers)
    chosen, wanted = set(side.numbers), set[int]()
    size = count
    while len(wanted) < count:  # the side may be a part of the index
        wanted = chosen & set(subset(side.index, size, seed + 1))
        size = min(2 * size, side.index.samples) if len(wanted) < count else size
    return frozenset(sorted(wanted)[:count])


def _names(side: Side, stored: Stored) -> tuple[list[str | None], list[str]]:
    """Labels and keys of all rows, read in pieces."""
    labels: list[str | None] = []
    keys: list[str] = []
    for start in range(0, len(stored.sample), 8192):
        lines = side.index.lines(stored.sample[start : start + 8192])
        labels += [line.label for line in lines]
        keys += [line.key for line in lines]
    return labels, keys


def _check(side: Side, labels: list[str | None], refused: Counter[str], need_labels: bool) -> None:
    if not labels:
        reasons = ", ".join(f"{count} {word}" for word, count in refused.items())
        raise UserError(f"No {side.name} image of {side.pattern} can be read ({reasons}). Choose other shards.")
    if need_labels and all(label is None for label in labels):
        raise UserError(f"The {side.name} images of {side.pattern} have no labels under '{side.label}'. Choose another --label.")
