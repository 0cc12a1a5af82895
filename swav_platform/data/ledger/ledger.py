"""The ledger in memory, for reports: each sample that could not be used, the reason, and a thumbnail if possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import replacing
from swav_platform.data.ledger import parts
from swav_platform.data.ledger.outcomes import Event
from swav_platform.data.ledger.parts import events_of, identity, read_events, table_of, with_thumbnail, without_thumbnail


class Ledger:
    """Failed attempts by (position, attempt). An event that a repeated step adds again counts once."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._events: dict[tuple[int, int], Event] = {}
        self._thumbnails: dict[tuple[str, str, int], bytes] = {}  # one per sample, even if it fails repeatedly
        self.add(events)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.thumbnail is not None and len(self._thumbnails) < parts.THUMBNAILS:
                self._thumbnails.setdefault(identity(event), event.thumbnail)
            self._events.setdefault((event.position, event.attempt), without_thumbnail(event))

    def __len__(self) -> int:
        return len(self._events)

    def events(self) -> list[Event]:
        """All events, ordered by position. Only the first event of a sample has its thumbnail."""
        thumbnails = dict(self._thumbnails)
        ordered = [self._events[place] for place in sorted(self._events)]
        return [with_thumbnail(event, thumbnails.pop(identity(event), None)) for event in ordered]

    @property
    def quarantined(self) -> int:
        """Number of positions whose own sample could not be used."""
        return sum(attempt == 0 for _, attempt in self._events)

    def outcomes(self) -> dict[str, int]:
        """Number of positions by the outcome of their own sample, most frequent first."""
        words = Counter(event.outcome.word for event in self._events.values() if event.attempt == 0)
        return dict(sorted(words.items(), key=lambda item: (-item[1], item[0])))

    def bad(self) -> list[Event]:
        """The first event of each distinct bad sample, ordered by position, with its thumbnail if there is one."""
        first: dict[tuple[str, str, int], Event] = {}
        for event in self.events():
            first.setdefault(identity(event), event)
        return list(first.values())

    def samples(self) -> int:
        """Number of distinct bad samples."""
        return len({identity(event) for event in self._events.values()})

    def samples_by_outcome(self) -> dict[str, int]:
        """Number of distinct bad samples by outcome, most frequent first."""
        words = Counter(event.outcome.word for event in self.bad())
        return dict(sorted(words.items(), key=lambda item: (-item[1], item[0])))

    def samples_by_shard(self) -> dict[str, dict[str, int]]:
        """Number of distinct bad samples by shard and outcome, worst shards first."""
        found: dict[str, Counter[str]] = {}
        for event in self.bad():
            found.setdefault(event.shard, Counter())[event.outcome.word] += 1
        return {shard: dict(words) for shard, words in sorted(found.items(), key=lambda item: (-item[1].total(), item[0]))}

    def shards(self) -> list[tuple[str, int]]:
        """Number of distinct bad samples by shard, worst first."""
        bad = Counter(shard for shard, _, _ in {identity(event) for event in self._events.values()})
        return sorted(bad.items(), key=lambda item: (-item[1], item[0]))

    def to_bytes(self) -> bytes:
        """The ledger as a Parquet file, for a checkpoint."""
        sink = pa.BufferOutputStream()
        pq.write_table(table_of(self.events()), sink)
        return bytes(sink.getvalue().to_pybytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Ledger:
        return cls(events_of(pq.ParquetFile(pa.BufferReader(data))))

    def write(self, path: Path) -> None:
        """Replaces the file at `path`. Raises UserError if the write fails."""
        with replacing(Path(path)) as aside:
            pq.write_table(table_of(self.events()), aside)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """The whole ledger of a run (`RunFolder.ledger`). Raises UserError if there is no readable one at `path`."""
        return cls(read_events(path))
