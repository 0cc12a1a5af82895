"""Reads the bytes of samples: neighbours in one long read, and remote shards with concurrent requests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby

from obstore.exceptions import BaseError

from swav_platform.data.freshness import is_fresh
from swav_platform.data.index.lookup import IndexLine
from swav_platform.data.index.tar import HEADER, content_size
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.outages import GONE, Outages
from swav_platform.data.storage.cache import local_copy
from swav_platform.data.storage.objects import Changed, Traffic, is_remote, read_range
from swav_platform.data.storage.ranges import LocalFile
from swav_platform.errors import UserError
from swav_platform.failures import Kind, MachineFault, machine_fault, patiently, reason

_GAP = 64 * 2**10  # bytes between two samples up to which one read covers both
_LONGEST_READ = 8 * 2**20  # maximum bytes of one read, unless a single sample is longer
CONCURRENT = 16  # concurrent requests of a process to remote storages

_TRIES = 3  # requests for a range that may fail in a row, before the wait becomes visible
CHANGED = "has changed since it was indexed"


@dataclass(frozen=True)
class ReadFailure:
    """Why a sample is bad, found when its bytes were read."""

    detail: str
    outcome: Outcome = Outcome.READ_ERROR


Read = bytes | ReadFailure
Found = tuple[int, bytes | ReadFailure | MachineFault]
Killers = dict[int, ReadFailure]
"""Samples whose decoding kills the process, by number."""


@dataclass
class ReadCounts:
    """The cost of reading samples: `requests`, `bytes` read from shards, and `wanted`: bytes of samples among these."""

    requests: int = 0
    bytes: int = 0
    wanted: int = 0


def read_samples(
    lines: Sequence[IndexLine],
    *,
    max_bytes: int | None = None,
    counts: ReadCounts | None = None,
    outages: Outages | None = None,
) -> dict[int, bytes | ReadFailure]:
    """Maps each sample number to the bytes of its image, or to the reason why the sample is bad.

    Waits for storages that fail, as `outages` says, and raises MachineFault if that takes too long. Damaged content of a shard fails
    its own samples only. Excluded samples and samples longer than `max_bytes` are not read. The cost is added to `counts`.
    """
    counts, outages = counts or ReadCounts(), outages or Outages()
    found: dict[int, bytes | ReadFailure] = {}
    pending: dict[int, IndexLine] = {}
    for line in lines:
        if line.excluded:
            found[line.number] = ReadFailure("on the exclusion list", Outcome.EXCLUDED)
        elif max_bytes is not None and line.size > max_bytes:
            found[line.number] = ReadFailure(f"{line.size} bytes, more than {max_bytes}", Outcome.TOO_MANY_BYTES)
        else:
            pending[line.number] = line
    while pending:
        _read_patiently(pending, found, counts, outages)
    return found


def _read_patiently(pending: dict[int, IndexLine], found: dict[int, Read], counts: ReadCounts, outages: Outages) -> None:
    """Moves samples from `pending` to `found`. Returns with some left if their shards were given up and are now replaced."""
    faults: dict[str, MachineFault] = {}
    answered: set[str] = set()

    def attempt() -> None:
        faults.clear()
        for number, data in _read_all(list(pending.values()), counts, outages.gone):
            line = pending[number]
            if isinstance(data, MachineFault):
                faults[line.shard] = data
                continue
            found[number] = data
            del pending[number]
            if isinstance(data, bytes):
                answered.add(line.shard)
                counts.wanted += line.size
        if faults:
            raise next((fault for fault in faults.values() if fault.kind not in GONE), next(iter(faults.values())))

    try:
        patiently(
            attempt,
            lambda _: outages.patience_for(faults.values(), bool(answered - faults.keys())),
            outages.tell,
            place=next(iter(pending.values())).shard,
        )
    except MachineFault:
        if not outages.replace(faults.values()):
            raise


def _read_all(lines: list[IndexLine], counts: ReadCounts, gone: Mapping[str, str]) -> Iterator[Found]:
    """Reads what can be read now. Requests to remote shards run at the same time as reads of local ones."""
    local: list[tuple[str, list[list[IndexLine]]]] = []
    answers = []
    for shard, of_shard in groupby(sorted(lines, key=lambda line: (line.shard, line.offset)), key=lambda line: line.shard):
        if shard in gone:
            yield from ((line.number, ReadFailure(f"{shard} is gone: {gone[shard]}")) for line in of_shard)
            continue
        groups = list(_groups(list(of_shard)))
        if is_remote(shard) and not groups[0][0].whole:
            for group in groups:
                traffic = Traffic()
                answers.append((group, traffic, _pool().submit(_read_remote, group, traffic)))
        else:
            local.append((shard, groups))
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


def _read_remote(group: list[IndexLine], traffic: Traffic) -> bytes | MachineFault:
    first, end = _extent(group)
    url, version = group[0].shard, group[0].version
    try:
        data, _ = read_range(url, first, end, version=version, traffic=traffic, tries=_TRIES)
    except (OSError, BaseError) as error:
        return _fault(error, url)
    return data


def _read_local(shard: str, groups: list[list[IndexLine]], counts: ReadCounts) -> Iterator[Found]:
    try:
        line = groups[0][0]
        file = LocalFile(local_copy(shard, line.version) if line.whole else shard)
    except EOFError as error:
        yield from _cut(list(chain(*groups)), ReadFailure(f"{shard}: {reason(error)}"))
        return
    except (OSError, BaseError, UserError) as error:
        yield from _cut(list(chain(*groups)), _fault(error, shard))
        return
    with file:
        for group in groups:
            first, end = _extent(group)
            counts.requests += 1
            try:
                yield from _cut(group, _checked(file, group, file.read(end - first, first)))
            except OSError as error:
                yield from _cut(group, _fault(error, shard))
        counts.bytes += file.bytes_read


def _fault(error: Exception, shard: str) -> MachineFault:
    if isinstance(error, Changed):
        return MachineFault(Kind.CHANGED, shard, CHANGED)
    return machine_fault(error, shard) or MachineFault(Kind.UNREACHABLE, shard, reason(error))


def _checked(file: LocalFile, group: list[IndexLine], data: bytes) -> bytes | MachineFault:
    """`data` of a group, unless the shard has another content than when it was indexed.

    Where freshness.py can't tell, a header with the sample's size must still be before the sample.
    """
    line = group[0]
    fresh = None if line.whole else is_fresh(file, line.shard_size, line.version, line.probe)
    if fresh is False:
        return MachineFault(Kind.CHANGED, line.shard, CHANGED)
    if fresh or line.offset < HEADER:
        return data
    complete = len(data) >= _extent(group)[1] - line.offset
    if content_size(file.read(HEADER, line.offset - HEADER)) == line.size and (complete or line.whole):
        return data
    return MachineFault(Kind.CHANGED, line.shard, CHANGED)


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


def _cut(group: list[IndexLine], data: bytes | ReadFailure | MachineFault) -> Iterator[Found]:
    """Cuts the samples of a group out of the bytes that were read."""
    if not isinstance(data, bytes):
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
