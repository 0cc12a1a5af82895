"""Labels as numbers: one per image, or a set per image from a list file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swav_platform.errors import UsageError, UserError


@dataclass(frozen=True)
class Rows:
    """Labelled features of one side. labels: int64 [n], or bool [n, C] with several labels per image."""

    values: np.ndarray  # float32 [n, D]
    labels: np.ndarray

    @property
    def several(self) -> bool:
        return self.labels.ndim == 2


def numbered(train: Sequence[str | None], test: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels of both sides as int64, with the names of the classes in sorted order; -1 for None."""
    names = sorted({label for label in (*train, *test) if label is not None})
    place = {name: i for i, name in enumerate(names)}
    sides = [np.array([-1 if label is None else place[label] for label in side], np.int64) for side in (train, test)]
    return sides[0], sides[1], names


def read_list(path: Path) -> dict[str, tuple[str, ...]]:
    """A list file: `KEY<tab>LABEL,LABEL` per line; a line without labels is an image of no class. Raises UsageError."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The list of labels {path} can't be read ({error}). Name a text file of lines KEY<tab>LABEL,LABEL."
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, tab, labels = line.partition("\t")
        if not tab:
            raise UsageError(f"{path}, line {number}: '{line[:60]}' has no tab. Write KEY<tab>LABEL,LABEL.")
        found[key] = tuple(label.strip() for label in labels.split(",") if label.strip())
    return found


def sets(
    train: Sequence[str], test: Sequence[str], listed: dict[str, tuple[str, ...]], where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Sets of labels by key: bool [n, C] of both sides, which rows of both sides are in the list, and the names of the classes."""
    names = sorted({label for labels in listed.values() for label in labels})
    place = {name: i for i, name in enumerate(names)}
    sides, known = [], []
    for side, keys in (("train", train), ("test", test)):
        flags = np.zeros((len(keys), len(names)), bool)
        for row, key in enumerate(keys):
            flags[row, [place[label] for label in listed.get(key, ())]] = True
        known.append(np.array([key in listed for key in keys], bool))
        if not known[-1].any():
            raise UserError(
                f"No key of the {side} images is in {where}, for example {keys[0] if keys else 'none'}. List keys as the index has them."
            )
        sides.append(flags)
    return sides[0], sides[1], known[0], known[1], names
