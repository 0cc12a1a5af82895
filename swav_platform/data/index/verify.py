"""Checks that an index still matches its shards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from obstore.exceptions import BaseError

from swav_platform.data.index.build import THREADS, without
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.shard import read_shard
from swav_platform.data.index.version_writer import shard_digest
from swav_platform.data.storage.cache import is_command
from swav_platform.data.storage.errors import explain
from swav_platform.data.storage.objects import is_remote
from swav_platform.data.storage.ranges import stat


@dataclass(frozen=True)
class Verified:
    """The result of `verify`. wrong: one message per shard that differs from the index."""

    ok: bool
    shards: int
    samples: int
    bytes_read: int
    wrong: list[str]


def verify(index: Index) -> Verified:
    """Reads the headers of all shards again and compares each line of the index, and a hash of some bytes of each local shard."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda number: _compare(index, number), range(len(index.shards))))
    wrong = [complaint for complaint, _ in found if complaint]
    return Verified(not wrong, len(found), index.samples, sum(read for _, read in found), wrong)


def _compare(index: Index, number: int) -> tuple[str | None, int]:
    shard = index.shards[number]
    url = shard.file.url
    try:
        size, version = (shard.file.size, shard.file.version) if is_command(url) else stat(url)
    except (OSError, BaseError) as error:
        return explain(url, error), 0
    if size != shard.file.size:
        return f"{url} has {size:,} bytes; the index expects {shard.file.size:,}", 0
    if is_remote(url) and version != shard.file.version:
        return f"{url} has another ETag or time than the index expects", 0
    found = read_shard(url, number, index.label, shard.file.version, index.members)
    lines = without(found, url, index.taken_out)[0].lines
    if shard_digest(shard.file, lines) == shard.digest:
        other = shard.probe is not None and found.probe is not None and found.probe != shard.probe
        return (f"{url} has other bytes than the index expects" if other else None), found.bytes_read
    if lines.num_rows != shard.samples:
        return f"{url} has {lines.num_rows:,} samples; the index expects {shard.samples:,}", found.bytes_read
    return f"{url} has samples with other names, offsets or sizes than the index expects", found.bytes_read
