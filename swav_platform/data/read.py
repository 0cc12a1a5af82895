"""Bytes of samples: few, long reads instead of many short ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from swav_platform.data.index import IndexLine
from swav_platform.data.outcomes import Outcome

_GAP = 64 * 2**10  # bytes between two samples that are read along rather than skipped
_RUN = 8 * 2**20  # bytes of one read, unless a single sample is longer


@dataclass(frozen=True)
class ReadFailure:
    """Why a sample's bytes could not be had."""

    detail: str
    outcome: Outcome = Outcome.READ_ERROR


def read_samples(lines: Sequence[IndexLine], *, max_bytes: int | None = None) -> dict[int, bytes | ReadFailure]:
    """Sample number -> bytes of its image, or the reason why not.

    Never raises for what a shard does: a missing, shrunken or unreadable one fails its own samples only.
    Samples longer than `max_bytes` are not read.
    """
    found: dict[int, bytes | ReadFailure] = {}
    wanted = []
    for line in lines:
        if max_bytes is not None and line.size > max_bytes:
            found[line.number] = ReadFailure(f"{line.size} bytes, more than {max_bytes}", Outcome.TOO_MANY_BYTES)
        else:
            wanted.append(line)
    wanted.sort(key=lambda line: (line.shard, line.offset))
    for shard, of_shard in groupby(wanted, key=lambda line: line.shard):
        found.update(_read_shard(shard, list(of_shard)))
    return found


def _read_shard(shard: str, lines: list[IndexLine]) -> dict[int, bytes | ReadFailure]:
    try:
        descriptor = os.open(shard, os.O_RDONLY)
    except OSError as error:
        return {line.number: ReadFailure(f"{shard}: {error.strerror}") for line in lines}
    try:
        return {number: data for run in _runs(lines) for number, data in _read_run(descriptor, run)}
    finally:
        os.close(descriptor)


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


def _read_run(descriptor: int, run: list[IndexLine]) -> Iterator[tuple[int, bytes | ReadFailure]]:
    first = run[0].offset
    end = max(line.offset + line.size for line in run)
    try:
        data = memoryview(_read_fully(descriptor, end - first, first))
    except OSError as error:
        for line in run:
            yield line.number, ReadFailure(f"{line.shard} at byte {line.offset}: {error.strerror}")
        return
    for line in run:
        start = line.offset - first
        if start + line.size <= len(data):
            yield line.number, bytes(data[start : start + line.size])
        else:
            yield line.number, ReadFailure(f"{line.shard} ends at byte {first + len(data)}, before the sample does")


def _read_fully(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes; fewer only where the file ends."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
