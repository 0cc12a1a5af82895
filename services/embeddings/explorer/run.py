"""The record of a run: the verdict about its health, and its loss."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swav_platform.config import Config
from swav_platform.errors import UserError
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import read_health

_POINTS = 400  # of the curve


def record(place: Path) -> dict[str, Any]:
    """name, health, loss as [[step, value]], and the loss of guessing.

    place: a run or the package in it; the name is None for a package outside of a run.
    """
    own = place if (place / "run.json").is_file() else place.parent
    folder = RunFolder(own)
    if not folder.exists():
        return {"name": None, "health": None, "loss": [], "chance": None}
    health = read_health(own)
    try:
        losses, chance = folder.losses(), _chance(folder.config())
    except (OSError, UserError):  # the page shows what can be read
        losses, chance = [], None
    return {"name": folder.name, "health": health and asdict(health), "loss": thinned(losses), "chance": chance}


def _chance(config: Config) -> float | None:
    """ln K for methods that compare with prototypes."""
    if config.method.name != "swav":
        return None
    counts = config.method.prototypes
    first = counts if isinstance(counts, int) else counts[0]
    return round(math.log(first), 5) if first > 1 else None


def thinned(losses: list[float]) -> list[list[float]]:
    """At most `_POINTS` points, each the mean of equally many steps."""
    width = max(1, -(-len(losses) // _POINTS))
    parts = [losses[i : i + width] for i in range(0, len(losses), width)]
    return [[i * width + len(part) - 1, round(sum(part) / len(part), 6)] for i, part in enumerate(parts)]
