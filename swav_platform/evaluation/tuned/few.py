"""Which images keep their labels in a semi-supervised evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from swav_platform.errors import UsageError, UserError


def share(labels: Mapping[int, int], fraction: float, seed: int) -> dict[int, int]:
    """A share of the labelled images of each class, at least one, drawn by `seed`."""
    kept: dict[int, int] = {}
    for label in sorted(set(labels.values())):
        numbers = np.array([number for number in sorted(labels) if labels[number] == label])
        count = max(1, round(fraction * len(numbers)))
        kept |= {int(n): label for n in np.random.default_rng([seed, label]).choice(numbers, count, replace=False)}
    return kept


def listed(labels: Mapping[int, int], keys: Mapping[int, str], path: Path) -> dict[int, int]:
    """The labelled images whose keys are in a list file, one key per line, as the published splits. A key may have an extension."""
    try:
        wanted = {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The split {path} can't be read ({error}). Name a text file with one key per line.") from None
    bare = wanted | {line.rpartition(".")[0] for line in wanted if "." in line.rpartition("/")[2]}
    kept = {n: label for n, label in labels.items() if keys[n] in bare or keys[n].rpartition("/")[2] in bare}
    if not kept:
        raise UserError(
            f"No key of the training images is in {path}. List keys as the index has them, such as {next(iter(keys.values()))}."
        )
    return kept
