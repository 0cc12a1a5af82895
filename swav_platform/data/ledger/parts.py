"""The ledger of a run as append-only parts: `RUN/ledger/part-<first>-<end>.parquet` has the events of steps first … end-1.

Rank 0 writes a part before each checkpoint, so its memory does not grow with the run. Parts of steps that no checkpoint has are cut
off on resume. Older runs have one file, `RUN/ledger.parquet`, and a copy of it in each checkpoint.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from swav_platform.atomic import replacing
from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.errors import UserError

FOLDER = "ledger"
THUMBNAILS = 500
"""Distinct samples whose thumbnails are kept."""

SCHEMA = pa.schema(
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
_NAME = re.compile(r"part-(\d+)-(\d+)\.parquet")
_BATCH = 4096  # events in memory while a part is read


class LedgerWriter:
    """Appends to the ledger in `run` / "ledger". Raises UserError if it can't be written."""

    def __init__(self, run: Path) -> None:
        self._folder, self._steps = run / FOLDER, 0
        self._pictured: set[tuple[str, str, int]] = set()  # samples with a thumbnail, at most THUMBNAILS

    def open(self, steps: int, earlier: bytes = b"") -> None:
        """Starts after `steps` finished steps: parts of later steps are deleted. earlier: the ledger of a checkpoint of an older run."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for first, _, path in parts_in(self._folder):
                if first >= steps or earlier:
                    path.unlink()
        except OSError as error:
            raise UserError(f"The ledger {self._folder} can't be written ({error.strerror}): check its permissions.") from error
        if earlier:
            self._write(table_of(events_of(pq.ParquetFile(pa.BufferReader(earlier)))), 0, steps)
        pictured = (identity(event) for event in read_events(self._folder) if event.thumbnail is not None)
        self._pictured = set(pictured)
        self._steps = steps

    def append(self, events: Sequence[Event], steps: int) -> None:
        """Adds the events of the steps until `steps`, ordered by position."""
        if events:
            self._write(table_of(map(self._without_surplus, events)), self._steps, steps)
        self._steps = steps

    def _write(self, table: pa.Table, first: int, end: int) -> None:
        with replacing(self._folder / f"part-{first:09d}-{end:09d}.parquet") as aside:
            pq.write_table(table, aside)

    def _without_surplus(self, event: Event) -> Event:
        """The event without its thumbnail if its sample has one, or enough others have."""
        if event.thumbnail is None or identity(event) in self._pictured or len(self._pictured) >= THUMBNAILS:
            return without_thumbnail(event)
        self._pictured.add(identity(event))
        return event


def parts_in(folder: Path) -> list[tuple[int, int, Path]]:
    """First step, end and path of each part, in order."""
    found = [(match, path) for path in folder.glob("part-*.parquet") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), int(match[2]), path) for match, path in found)


def read_events(path: Path) -> Iterator[Event]:
    """The events of a ledger, one by one: of the folder of parts, or of the one file of an older run.

    Raises UserError if there is no readable ledger at `path`.
    """
    for file in _files(path):
        yield from _read_file(file, path)


def _files(path: Path) -> list[Path]:
    return [part for _, _, part in parts_in(path)] if path.is_dir() else [path.with_suffix(".parquet")]


def _read_file(file: Path, ledger: Path) -> Iterator[Event]:
    try:
        with pq.ParquetFile(file) as opened:
            yield from events_of(opened)
    except FileNotFoundError:
        raise UserError(f"There is no ledger {ledger}: pass the folder of a run that has written a checkpoint.") from None
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise UserError(
            f"Ledger {file} can't be read ({error}). To write it again, delete summary.json of the run and resume with --resume."
        ) from None


def events_of(file: pq.ParquetFile) -> Iterator[Event]:
    for batch in file.iter_batches(_BATCH, columns=SCHEMA.names):
        columns = [batch[name].to_pylist() for name in SCHEMA.names]
        for position, attempt, sample, key, shard, word, detail, thumbnail in zip(*columns, strict=True):
            yield Event(position, attempt, sample, key, shard, Outcome.from_word(word), detail, thumbnail)


def table_of(events: Iterable[Event]) -> pa.Table:
    rows = [(e.position, e.attempt, e.sample, e.key, e.shard, e.outcome.word, e.detail, e.thumbnail) for e in events]
    columns = zip(*rows, strict=True) if rows else [[]] * len(SCHEMA)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def forget_thumbnails(path: Path, excluded: Exclusions) -> None:
    """Deletes the thumbnails of samples that may be excluded from a ledger. Raises UserError if there is none, or none that can be read
    and written."""
    for file in _files(path):
        events = list(_read_file(file, path))
        kept = [without_thumbnail(e) if excluded.may_cover(e.shard, e.key) else e for e in events]
        if any(before is not after for before, after in zip(events, kept, strict=True)):
            with replacing(file) as aside:
                pq.write_table(table_of(kept), aside)


def worst(path: Path) -> tuple[str, str]:
    """The most frequent outcome of positions in a ledger, and the shard with the most events; empty words without events."""
    outcomes, shards = Counter[str](), Counter[str]()
    for event in read_events(path):
        shards[event.shard] += 1
        outcomes[event.outcome.word] += event.attempt == 0
    return next((w for w, _ in outcomes.most_common(1)), ""), next((s for s, _ in shards.most_common(1)), "")


def identity(event: Event) -> tuple[str, str, int]:
    return event.shard, event.key, event.sample


def without_thumbnail(event: Event) -> Event:
    return event if event.thumbnail is None else with_thumbnail(event, None)


def with_thumbnail(event: Event, thumbnail: bytes | None) -> Event:
    if event.thumbnail is thumbnail:
        return event
    return Event(event.position, event.attempt, event.sample, event.key, event.shard, event.outcome, event.detail, thumbnail)
