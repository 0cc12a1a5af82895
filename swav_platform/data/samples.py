"""Reads the bytes of samples: neighbours in one long read, and remote shards with concurrent requests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby

from obstore.exceptions import BaseError

from swav_platform.data.index.lookup import IndexLine
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.storage.cache import local_copy
from swav_platform.data.storage.objects import Changed, Traffic, is_remote, read_range
from swav_platform.data.storage.ranges import LocalFile
from swav_platform.errors import UserError
from swav_platform.failures import reason

_GAP = 64 * 2**10  # bytes between two samples up to which one read covers both
_LONGEST_READ = 8 * 2**20  # maximum bytes of one read, unless a single sample is longer
CONCURRENT = 16  # concurrent requests of a process to remote storages

Found = tuple[int, "bytes | ReadFailure"]


@dataclass(frozen=True)
class ReadFailure:
    """Why a sample's bytes could not be read."""

    detail: str
    outcome: Outcome = Outcome.READ_ERROR


Killers = dict[int, ReadFailure]
"""Samples whose decoding kills the process, by number."""


@dataclass
class ReadCounts:
    """The cost of reading samples: `requests`, `bytes` read from shards, and `wanted`: bytes of samples among these."""

    requests: int = 0
    bytes: int = 0
    wanted: int = 0


def read_samples(
    lines: Sequence[IndexLine], *, max_bytes: int | None = None, counts: ReadCounts | None = None
) -> dict[int, bytes | ReadFailure]:
    """Maps each sample number to the bytes of its image, or to the reason why they could not be read.

    Never raises for a faulty shard: a missing, truncated, changed or unreadable shard fails only its own samples.
    Excluded samples and samples longer than `max_bytes` are not read. The cost is added to `counts`.
    """
    counts = ReadCounts() if counts is None else counts
    found: dict[int, bytes | ReadFailure] = {}
    wanted: dict[int, IndexLine] = {}
    for line in lines:
        if line.excluded:
            found[line.number] = ReadFailure("on the exclusion list", Outcome.EXCLUDED)
        elif max_bytes is not None and line.size > max_bytes:
            found[line.number] = ReadFailure(f"{line.size} bytes, more than {max_bytes}", Outcome.TOO_MANY_BYTES)
        else:
            wanted[line.number] = line
    local, remote = [], []
    ordered = sorted(wanted.values(), key=lambda line: (line.shard, line.offset))
    for shard, of_shard in groupby(ordered, key=lambda line: line.shard):
        groups = list(_groups(list(of_shard)))
        if is_remote(shard) and not groups[0][0].whole:
            remote += groups
        else:
            local.append((shard, groups))
    for number, data in _read_all(local, remote, counts):
        found[number] = data
        counts.wanted += wanted[number].size
    return found


def _read_all(
    local: list[tuple[str, list[list[IndexLine]]]], remote: list[list[IndexLine]], counts: ReadCounts
) -> Iterator[Found]:
    answers = [(group, traffic := Traffic(), _pool().submit(partial(_read_remote, group, traffic))) for group in remote]
    for shard, groups in local:
        yield from _read_local(shard, groups, counts)
    for group, traffic, answer in answers:
        yield from _cut(group, answer.result())
        counts.requests += traffic.requests
        counts.bytes += traffic.bytes


@lru_cache(1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CONCURRENT, thread_name_prefix="ranges")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has no threads


def _read_remote(group: list[IndexLine], traffic: Traffic) -> bytes | ReadFailure:
    first, end = _extent(group)
    try:
        data, _ = read_range(group[0].shard, first, end, version=group[0].version, traffic=traffic)
    except Changed:
        return ReadFailure(f"{group[0].shard} has changed since it was indexed: index it again")
    except (OSError, BaseError) as error:
        return ReadFailure(f"{group[0].shard} at byte {first}: {reason(error)}")
    return data


def _read_local(shard: str, groups: list[list[IndexLine]], counts: ReadCounts) -> Iterator[Found]:
    try:
        line = groups[0][0]
        file = LocalFile(local_copy(shard, line.version) if line.whole else shard)
    except (OSError, EOFError, BaseError, UserError) as error:
        failure = ReadFailure(f"{shard}: {getattr(error, 'strerror', None) or reason(error)}")
        yield from ((line.number, failure) for group in groups for line in group)
        return
    with file:
        for group in groups:
            first, end = _extent(group)
            counts.requests += 1
            try:
                yield from _cut(group, file.read(end - first, first))
            except OSError as error:
                yield from _cut(group, ReadFailure(f"{shard} at byte {first}: {error.strerror}"))
        counts.bytes += file.bytes_read


def _groups(lines: list[IndexLine]) -> Iterator[list[IndexLine]]:
    """Groups of neighbours that one read covers. `lines` are sorted by offset."""
    group: list[IndexLine] = []
    end = 0
    for line in lines:
        if group and (line.offset - end > _GAP or line.offset + line.size - group[0].offset > _LONGEST_READ):
            yield group
            group, end = [], 0
        group.append(line)
        end = max(end, line.offset + line.size)
    if group:
        yield group


def _extent(group: Iterable[IndexLine]) -> tuple[int, int]:
    return min(line.offset for line in group), max(line.offset + line.size for line in group)


def _cut(group: list[IndexLine], data: bytes | ReadFailure) -> Iterator[Found]:
    """Cuts the samples of a group out of the bytes that were read."""
    if isinstance(data, ReadFailure):
        yield from ((line.number, data) for line in group)
        return
    first, _ = _extent(group)
    view = memoryview(data)
    for line in group:
        start = line.offset - first
        if start + line.size <= len(data):
            yield line.number, bytes(view[start : start + line.size])
        else:
            yield line.number, ReadFailure(f"{line.shard} ends at byte {first + len(data)}, before the end of the sample")
