"""Indexing as a job of the cluster: headers of shards are read by tasks on all nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from swav_platform.cluster import session
from swav_platform.cluster.signals import own_signals
from swav_platform.data.index.build import Request, read_in_threads
from swav_platform.data.index.shard import ShardSamples

_OF_TASK = 16  # shards; read side by side, as the time goes into waiting for storages


@ray.remote(num_cpus=1)
def _read(requests: list[Request]) -> list[ShardSamples]:
    return list(read_in_threads(requests, _OF_TASK))


@contextmanager
def cluster_reader() -> Iterator[Callable[[list[Request]], Iterator[ShardSamples]]]:
    """What reads shards on the cluster at RAY_ADDRESS, or on a Ray of our own. Raises UserError if it does not answer."""
    with session.ray_at_hand(), own_signals():
        yield read_on_cluster


def read_on_cluster(requests: list[Request]) -> Iterator[ShardSamples]:
    """As `data.index.read_in_threads`, on the Ray that this process is connected to. Shards and paths must be seen by all nodes."""
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    for first in range(0, len(requests), _OF_TASK):
        waiting.append(_read.remote(requests[first : first + _OF_TASK]))
        if len(waiting) >= ahead:
            yield from ray.get(waiting.popleft())
    while waiting:
        yield from ray.get(waiting.popleft())
