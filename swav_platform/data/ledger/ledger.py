"""The ledger: each sample that could not be used, the reason, and a thumbnail if possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import replacing
from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.errors import UserError

_THUMBNAILS = 500  # distinct samples whose thumbnails are kept

_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("attempt", pa.int32()),
        ("sample", pa.int64()),
        ("sample_key", pa.string()),
        ("shard", pa.string()),
        ("outcome", pa.string()),
        ("detail", pa.string()),
        ("thumbnail", pa.binary()),
    ]
)


class Ledger:
    """Failed attempts by (position, attempt). An event that a repeated step adds again counts once."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._events: dict[tuple[int, int], Event] = {}
        self._thumbnails: dict[tuple[str, str, int], bytes] = {}  # one per sample, even if it fails repeatedly
        self.add(events)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.thumbnail is not None and len(self._thumbnails) < _THUMBNAILS:
                self._thumbnails.setdefault(_identity(event), event.thumbnail)
            self._events.setdefault((event.position, event.attempt), _without_thumbnail(event))

    def __len__(self) -> int:
        return len(self._events)

    def events(self) -> list[Event]:
        """All events, ordered by position. Only the first event of a sample has its thumbnail."""
        thumbnails = dict(self._thumbnails)
        ordered = [self._events[place] for place in sorted(self._events)]
        return [_with_thumbnail(event, thumbnails.pop(_identity(event), None)) for event in ordered]

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
            first.setdefault(_identity(event), event)
        return list(first.values())

    def samples(self) -> int:
        """Number of distinct bad samples."""
        return len({_identity(event) for event in self._events.values()})

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

    def forget(self, excluded: Exclusions) -> bool:
        """Drops the thumbnails of samples that may be excluded; returns whether there were any."""
        gone = [(shard, key, sample) for shard, key, sample in self._thumbnails if excluded.may_cover(shard, key)]
        for identity in gone:
            del self._thumbnails[identity]
        return bool(gone)

    def shards(self) -> list[tuple[str, int]]:
        """Number of distinct bad samples by shard, worst first."""
        bad = Counter(shard for shard, _, _ in {_identity(event) for event in self._events.values()})
        return sorted(bad.items(), key=lambda item: (-item[1], item[0]))

    def to_bytes(self) -> bytes:
        """The ledger as a Parquet file, for a checkpoint."""
        sink = pa.BufferOutputStream()
        pq.write_table(self._table(), sink)
        return bytes(sink.getvalue().to_pybytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Ledger:
        return cls._of(pq.read_table(pa.BufferReader(data), schema=_SCHEMA))

    def write(self, path: Path) -> None:
        """Replaces the file at `path`. Raises UserError if the write fails."""
        with replacing(Path(path)) as aside:
            pq.write_table(self._table(), aside)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Raises UserError if there is no readable ledger at `path`."""
        try:
            return cls._of(pq.ParquetFile(path).read())
        except FileNotFoundError:
            raise UserError(f"There is no ledger {path}: pass the folder of a run that has written a checkpoint.") from None
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            raise UserError(
                f"Ledger {path} can't be read ({error}). To write it again, delete summary.json of the run and resume with --resume."
            ) from None

    @classmethod
    def _of(cls, table: pa.Table) -> Ledger:
        columns = [table[name].to_pylist() for name in _SCHEMA.names]
        return cls(
            Event(position, attempt, sample, key, shard, Outcome.from_word(word), detail, thumbnail)
            for position, attempt, sample, key, shard, word, detail, thumbnail in zip(*columns, strict=True)
        )

    def _table(self) -> pa.Table:
        rows = [(e.position, e.attempt, e.sample, e.key, e.shard, e.outcome.word, e.detail, e.thumbnail) for e in self.events()]
        columns = zip(*rows, strict=True) if rows else [[]] * len(_SCHEMA)
        return pa.table([pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)


def _identity(event: Event) -> tuple[str, str, int]:
    return event.shard, event.key, event.sample


def _without_thumbnail(event: Event) -> Event:
    return event if event.thumbnail is None else _with_thumbnail(event, None)


def _with_thumbnail(event: Event, thumbnail: bytes | None) -> Event:
    if event.thumbnail is thumbnail:
        return event
    return Event(event.position, event.attempt, event.sample, event.key, event.shard, event.outcome, event.detail, thumbnail)
