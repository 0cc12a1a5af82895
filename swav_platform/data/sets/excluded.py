"""The samples of a set that must not be shown or used any more."""

from __future__ import annotations

from pathlib import Path

from swav_platform.data.index.exclusions import Exclusions
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.storage import Place


def excluded_now(place: Place) -> Exclusions:
    """The exclusion lists of the set's own index and of the run that the set is in. Empty for a set in an object store."""
    if not isinstance(place, Path):
        return Exclusions()
    found, run = Exclusions.of_index(place / "index"), RunFolder(place.absolute().parent)
    if run.exists():
        found |= Exclusions.of_index(Path(run.info()["index"]).parent)
    return found
