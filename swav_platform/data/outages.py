"""What reading does when a storage fails: it waits, and a shard that is gone for good while others answer stops the run or is replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from obstore.exceptions import BaseError

from swav_platform.config import Data
from swav_platform.data.index.lookup import Index
from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.ranges import stat
from swav_platform.failures import Kind, LogWaits, MachineFault, Tell

DEFINITE = 90.0
"""Seconds after which a shard counts as gone if other shards answer meanwhile."""

PROBES = 8
"""Other shards that are asked."""

GONE = (Kind.MISSING, Kind.CHANGED)
"""The storage answers, and no longer has what was indexed."""


@dataclass
class Outages:
    """The policy of one reader. gone: shards that are replaced, with the reason; it grows. index: to ask other shards."""

    patience: float = 1800.0  # seconds
    missing: Literal["stop", "replace"] = "stop"
    tell: Tell = field(default_factory=LogWaits)
    index: Index | None = None
    gone: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Data, index: Index) -> Self:
        return cls(data.storage_patience, data.missing_shards, index=index)

    def telling(self, tell: Tell, gone: dict[str, str] | None = None) -> Outages:
        """The same policy with another listener, and with shards that are known to be gone."""
        return replace(self, tell=tell, gone=self.gone if gone is None else gone)

    def patience_for(self, faults: Collection[MachineFault], answered: bool) -> float:
        """Seconds to wait. answered: another shard was read meanwhile."""
        definite = all(fault.kind in GONE for fault in faults)
        if definite and (answered or self._others_answer({fault.place for fault in faults})):
            return min(DEFINITE, self.patience)
        return self.patience

    def replace(self, faults: Iterable[MachineFault]) -> bool:
        """Whether to go on without the shards of these faults, for which reading has waited long enough."""
        faults = list(faults)
        if self.missing != "replace" or not all(fault.kind in GONE for fault in faults):
            return False
        if not self._others_answer({fault.place for fault in faults}):
            return False
        self.gone.update((fault.place, fault.why) for fault in faults)
        return True

    def _others_answer(self, shards: Collection[str]) -> bool:
        if self.index is None:
            return False
        count = len(self.index.shards)
        step = max(1, count // (PROBES + len(shards)))
        urls = (self.index.shards.url(number) for number in range(0, count, step))
        others = [url for url in urls if url not in shards and url not in self.gone and not is_command(url)]
        return any(map(_answers, others[:PROBES]))


def _answers(url: str) -> bool:
    try:
        stat(url)
    except (OSError, BaseError):
        return False
    return True
