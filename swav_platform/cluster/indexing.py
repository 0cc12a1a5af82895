"""Indexing as a job of the cluster: headers of shards are read by tasks on all nodes."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from swav_platform.cluster import session
from swav_platform.data.index import Request, read_in_threads
from swav_platform.data.shard import ShardSamples

_OF_TASK = 16  # shards; read side by side, as the time goes into waiting for storages


@ray.remote(num_cpus=1)
def _read(requests: list[Request]) -> list[ShardSamples]:
    return list(read_in_threads(requests, _OF_TASK))


@contextmanager
def cluster_reader() -> Iterator[Callable[[list[Request]], Iterator[ShardSamples]]]:
    """What reads shards on the cluster at RAY_ADDRESS, or on a Ray of our own. Raises UserError if it does not answer."""
    session.check_address()
    for name, value in session.SETTINGS.items():
        os.environ.setdefault(name, value)
    ours = not ray.is_initialized()
    if ours:
        address = os.environ.get("RAY_ADDRESS") or "local"
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield read_on_cluster
    finally:
        if ours:
            ray.shutdown()


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
