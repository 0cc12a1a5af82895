"""Bytes of samples: few, long reads instead of many short ones, several at a time where shards are far away."""

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
from swav_platform.data.storage.errors import reason
from swav_platform.data.storage.objects import Changed, Traffic, is_remote, read_range
from swav_platform.data.storage.ranges import LocalFile
from swav_platform.errors import UserError

_GAP = 64 * 2**10  # bytes between two samples that are read along rather than skipped
_RUN = 8 * 2**20  # bytes of one read, unless a single sample is longer
CONCURRENT = 16  # requests of a process to storages that are under way at one time

Found = tuple[int, "bytes | ReadFailure"]


@dataclass(frozen=True)
class ReadFailure:
    """Why a sample's bytes could not be had."""

    detail: str
    outcome: Outcome = Outcome.READ_ERROR


Killers = dict[int, ReadFailure]
"""Samples that kill whoever decodes them, by number."""


@dataclass
class ReadCounts:
    """What reading samples cost: `requests` and `bytes` asked of shards, `wanted`: bytes of samples among these."""

    requests: int = 0
    bytes: int = 0
    wanted: int = 0


def read_samples(
    lines: Sequence[IndexLine], *, max_bytes: int | None = None, counts: ReadCounts | None = None
) -> dict[int, bytes | ReadFailure]:
    """Sample number -> bytes of its image, or the reason why not.

    Never raises for what a shard does: a missing, shrunken, changed or unreadable one fails its own samples only.
    Samples longer than `max_bytes` or taken out are not read. `counts` is added to.
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
    near, far = [], []
    ordered = sorted(wanted.values(), key=lambda line: (line.shard, line.offset))
    for shard, of_shard in groupby(ordered, key=lambda line: line.shard):
        runs = list(_runs(list(of_shard)))
        if is_remote(shard) and not runs[0][0].whole:
            far += runs
        else:
            near.append((shard, runs))
    for number, data in _read_all(near, far, counts):
        found[number] = data
        counts.wanted += wanted[number].size
    return found


def _read_all(near: list[tuple[str, list[list[IndexLine]]]], far: list[list[IndexLine]], counts: ReadCounts) -> Iterator[Found]:
    answers = [(run, traffic := Traffic(), _pool().submit(partial(_read_far, run, traffic))) for run in far]
    for shard, runs in near:
        yield from _read_near(shard, runs, counts)
    for run, traffic, answer in answers:
        yield from _cut(run, answer.result())
        counts.requests += traffic.requests
        counts.bytes += traffic.bytes


@lru_cache(1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CONCURRENT, thread_name_prefix="ranges")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not come along


def _read_far(run: list[IndexLine], traffic: Traffic) -> bytes | ReadFailure:
    first, end = _extent(run)
    try:
        data, _ = read_range(run[0].shard, first, end, version=run[0].version, traffic=traffic)
    except Changed:
        return ReadFailure(f"{run[0].shard} is another one than was indexed: index it again")
    except (OSError, BaseError) as error:
        return ReadFailure(f"{run[0].shard} at byte {first}: {reason(error)}")
    return data


def _read_near(shard: str, runs: list[list[IndexLine]], counts: ReadCounts) -> Iterator[Found]:
    try:
        line = runs[0][0]
        file = LocalFile(local_copy(shard, line.version) if line.whole else shard)
    except (OSError, EOFError, BaseError, UserError) as error:
        failure = ReadFailure(f"{shard}: {getattr(error, 'strerror', None) or reason(error)}")
        yield from ((line.number, failure) for run in runs for line in run)
        return
    with file:
        for run in runs:
            first, end = _extent(run)
            counts.requests += 1
            try:
                yield from _cut(run, file.read(end - first, first))
            except OSError as error:
                yield from _cut(run, ReadFailure(f"{shard} at byte {first}: {error.strerror}"))
        counts.bytes += file.bytes_read


def _runs(lines: list[IndexLine]) -> Iterator[list[IndexLine]]:
    """Neighbours that are read at once; `lines` are in the order of their offsets."""
    run: list[IndexLine] = []
    end = 0
    for line in lines:
        if run and (line.offset - end > _GAP or line.offset + line.size - run[0].offset > _RUN):
            yield run
            run, end = [], 0
        run.append(line)
        end = max(end, line.offset + line.size)
    if run:
        yield run


def _extent(run: Iterable[IndexLine]) -> tuple[int, int]:
    return min(line.offset for line in run), max(line.offset + line.size for line in run)


def _cut(run: list[IndexLine], data: bytes | ReadFailure) -> Iterator[Found]:
    """The samples of a run out of what was read of it."""
    if isinstance(data, ReadFailure):
        yield from ((line.number, data) for line in run)
        return
    first, _ = _extent(run)
    view = memoryview(data)
    for line in run:
        start = line.offset - first
        if start + line.size <= len(data):
            yield line.number, bytes(view[start : start + line.size])
        else:
            yield line.number, ReadFailure(f"{line.shard} ends at byte {first + len(data)}, before the sample does")
