"""Indexing on a Ray cluster: tasks on all nodes read the headers of shards."""

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

_SHARDS_PER_TASK = 16  # read concurrently: most of the time is latency of the storage


@ray.remote(num_cpus=1)
def _read(requests: list[Request]) -> list[ShardSamples]:
    return list(read_in_threads(requests, _SHARDS_PER_TASK))


@contextmanager
def cluster_reader() -> Iterator[Callable[[list[Request]], Iterator[ShardSamples]]]:
    """A reader for `build_index` that runs on RAY_ADDRESS, or on a local Ray. Raises UserError if the address does not answer."""
    with session.ray_session(), own_signals():
        yield read_on_cluster


def read_on_cluster(requests: list[Request]) -> Iterator[ShardSamples]:
    """Like `data.index.read_in_threads`, on the connected Ray. All nodes must be able to read the shards."""
    limit = 2 * max(1, int(session.cluster_resources().get("CPU", 1)))
    pending: deque[Any] = deque()
    for first in range(0, len(requests), _SHARDS_PER_TASK):
        pending.append(_read.remote(requests[first : first + _SHARDS_PER_TASK]))
        if len(pending) >= limit:
            yield from ray.get(pending.popleft())
    while pending:
        yield from ray.get(pending.popleft())
