"""Reads the bytes that rows are made of: the samples of several rows at once, and replacement samples on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.order.plan import RowSpec
from swav_platform.data.outages import Outages
from swav_platform.data.samples import Killers, ReadFailure, read_samples
from swav_platform.rows.job import RowJob, open_index

HELD_BYTES = 128 * 2**20
"""Encoded images that are read together and held. A window of camera photographs would be gigabytes."""

Fetched = Mapping[int, tuple[IndexLine, bytes | ReadFailure]]
Fetch = Callable[[Sequence[int]], Fetched]
"""fetch(samples): line and bytes of each sample, or why it could not be read."""

Replacement = Callable[[int, int], int]
"""replacement(position, attempt): the sample that fills a position whose own sample failed; attempts are numbered from 1."""


class RowsReader:
    """The bytes of the samples of some rows of one window. They are read on the first call, in runs, and held.

    Several threads may make these rows at the same time.
    """

    def __init__(self, index: Index, lines: Iterable[IndexLine], max_bytes: int, outages: Outages) -> None:
        self._index, self._max_bytes, self._outages = index, max_bytes, outages
        self._pending = {line.number: line for line in lines}
        self._held: dict[int, tuple[IndexLine, bytes | ReadFailure]] = {}
        self._lock = threading.Lock()

    def __call__(self, numbers: Sequence[int]) -> Fetched:
        with self._lock:
            unknown = {int(n) for n in numbers} - self._pending.keys() - self._held.keys()
            lines = [*self._pending.values(), *self._index.lines(sorted(unknown))]
            self._pending = {}
            if lines:
                contents = read_samples(lines, max_bytes=self._max_bytes, outages=self._outages)
                self._held.update((line.number, (line, contents[line.number])) for line in lines)
            return {int(n): self._held[int(n)] for n in numbers}


def with_bytes(job: RowJob, numbers: Sequence[int], outages: Outages | None = None) -> Iterator[tuple[RowSpec, Fetch]]:
    """The plan of each row, and the function that gives the bytes of its samples. Nothing is read yet.

    outages: what the function does when a storage fails; by default as the job's configuration says, with lines in the log.
    """
    plan, index = job.plan(), open_index(job.index)
    outages = outages or job.outages()
    for specs, lines in _held_together([plan.row(k) for k in numbers], index):
        fetch = RowsReader(index, lines, job.config.data.images.max_bytes, outages)
        for spec in specs:
            yield spec, fetch


def _held_together(specs: Sequence[RowSpec], index: Index) -> Iterator[tuple[list[RowSpec], list[IndexLine]]]:
    """Consecutive rows whose images have at most HELD_BYTES together, and their lines. A single row may have more."""
    group: list[RowSpec] = []
    lines: list[IndexLine] = []
    held = 0
    for spec in specs:
        found = index.lines(spec.samples)
        size = sum(line.size for line in found)
        if group and held + size > HELD_BYTES:
            yield group, lines
            group, lines, held = [], [], 0
        group.append(spec)
        lines += found
        held += size
    if group:
        yield group, lines


def without(fetch: Fetch, killers: Killers) -> Fetch:
    """`fetch`, but the samples in `killers` come as the reason why they are not decoded."""

    def fetch_others(numbers: Sequence[int]) -> Fetched:
        return {n: (line, killers.get(n, data)) for n, (line, data) in fetch(numbers).items()}

    return fetch_others if killers else fetch
