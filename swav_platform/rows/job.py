"""What a process must know to make rows. Imports no decoders, so that a scheduler can import it cheaply."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from swav_platform.config import Config
from swav_platform.data.datasets import streams_of
from swav_platform.data.index.lookup import Index
from swav_platform.data.order.streams import Streams
from swav_platform.data.outages import Outages
from swav_platform.data.samples import Killers


@dataclass(frozen=True)
class RowJob:
    """A configuration, the path of an index and the samples known to kill their decoder when the run started.

    It is small, because it is sent with every data task. With Ray, `config.data.tasks` is the number of tasks that have a CPU.
    """

    config: Config
    index: str
    killers: Killers = field(default_factory=dict)

    def plan(self) -> Streams:
        return streams_of(open_index(self.index), self.config.data, self.config.seed)

    def outages(self) -> Outages:
        """What reading does when a storage fails."""
        return Outages.of(self.config.data, open_index(self.index))


@functools.lru_cache(maxsize=2)
def open_index(path: str) -> Index:
    return Index.open(path)
