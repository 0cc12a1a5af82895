"""Bytes for the making of rows: those of all their samples at once, and of stand-ins when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.samples import ReadFailure, read_samples


class RowsReader:
    """Bytes of the samples of some rows of one window: read once, in runs, and held until the rows are made."""

    def __init__(self, index: Index, lines: Iterable[IndexLine], max_bytes: int) -> None:
        self._index, self._max_bytes = index, max_bytes
        self._pending = {line.number: line for line in lines}
        self._held: dict[int, tuple[IndexLine, bytes | ReadFailure]] = {}

    def __call__(self, numbers: Sequence[int]) -> dict[int, tuple[IndexLine, bytes | ReadFailure]]:
        unknown = {int(n) for n in numbers} - self._pending.keys() - self._held.keys()
        lines = [*self._pending.values(), *self._index.lines(sorted(unknown))]
        self._pending = {}
        if lines:
            contents = read_samples(lines, max_bytes=self._max_bytes)
            self._held.update((line.number, (line, contents[line.number])) for line in lines)
        return {int(n): self._held[int(n)] for n in numbers}
