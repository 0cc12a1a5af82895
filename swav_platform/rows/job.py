"""What all processes of a stream know. Imports nothing that makes images: who only schedules has no use for decoders."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from swav_platform.config import Config
from swav_platform.data.datasets import streams_of
from swav_platform.data.index.lookup import Index
from swav_platform.data.order.streams import Streams
from swav_platform.data.samples import Killers


@dataclass(frozen=True)
class StreamJob:
    """All that a data task has to know. Small: it travels with every task. `killers`: known when the run was taken up."""

    config: Config
    index: str
    tasks: int
    killers: Killers = field(default_factory=dict)

    def plan(self) -> Streams:
        return streams_of(open_index(self.index), self.config.data, self.config.seed)


@functools.lru_cache(maxsize=2)
def open_index(path: str) -> Index:
    return Index.open(path)
