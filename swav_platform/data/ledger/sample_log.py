"""The sample log: which sample filled each position, and a hash of its views.

One Parquet file per rank and flush. `_committed.json` has the number of steps that a checkpoint covers. A step that is repeated
after a crash may appear twice, with equal content.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from swav_platform.atomic import replacing, write_text
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.errors import UsageError, UserError

_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("row", pa.int64()),
        ("position", pa.int64()),
        ("rank", pa.int32()),
        ("sample_key", pa.string()),
        ("shard", pa.string()),
        ("outcome", pa.string()),
        ("stand_in_for", pa.string()),
        ("view_hash", pa.uint64()),
    ]
)
_CONTENT = [name for name in _SCHEMA.names if name != "rank"]  # a repeated step may run on another number of ranks
_WORDS = np.array([outcome.word for outcome in Outcome], dtype=object)


class LoggedRow(Protocol):
    """The part of a row that the log needs. Columns have one entry per position; R = row size."""

    @property
    def row(self) -> int: ...
    @property
    def position(self) -> np.ndarray: ...  # int64 [R]
    @property
    def outcome(self) -> np.ndarray: ...  # uint8 [R]: outcome of the position's own sample
    @property
    def key(self) -> list[str]: ...  # key of the sample that filled the position
    @property
    def shard(self) -> list[str]: ...
    @property
    def stand_in_for(self) -> list[str | None]: ...  # key of the own sample if a replacement sample filled the position


class SampleLog:
    """The log of one rank. Raises UserError if a write fails."""

    def __init__(self, folder: str | Path, rank: int) -> None:
        self.folder, self._rank = Path(folder), rank
        self._tables: list[pa.Table] = []
        self._steps: list[int] = []

    def append(self, step: int, row: LoggedRow, hashes: np.ndarray) -> None:
        """Adds a row of a finished step. hashes: uint64 [R], of each position's views and parameters."""
        count = len(row.position)
        columns = [
            np.full(count, step, np.int64),
            np.full(count, row.row, np.int64),
            row.position,
            np.full(count, self._rank, np.int32),
            row.key,
            row.shard,
            _WORDS[row.outcome],
            row.stand_in_for,
            hashes,
        ]
        self._tables.append(pa.table(columns, schema=_SCHEMA))
        self._steps.append(step)

    def flush(self) -> Path | None:
        """Writes the rows since the last flush and returns the file; None if there are none."""
        if not self._tables:
            return None
        path = self.folder / f"rank-{self._rank:05d}-steps-{min(self._steps):09d}-{max(self._steps):09d}.parquet"
        with replacing(path) as aside:
            pq.write_table(pa.concat_tables(self._tables), aside)
        self._tables, self._steps = [], []
        return path

    def commit(self, steps: int, batch: int | None = None) -> None:
        """On rank 0, records after a checkpoint that steps 0 .. steps-1 are final. batch: positions per step."""
        if self._rank == 0:
            write_text(self.folder / "_committed.json", json.dumps({"steps": steps, "batch": batch}))


@dataclass(frozen=True)
class LogCheck:
    """The result of `check`.

    duplicates: positions in two steps or with two different contents. missing: positions of the `steps` committed steps that
    are absent from their step.
    """

    ok: bool
    positions: int
    duplicates: int
    missing: int
    steps: int


def check(folder: str | Path) -> LogCheck:
    """Checks that each position of the committed steps was consumed exactly once.

    Without a committed checkpoint, all steps up to the last logged one count. Raises UsageError if there is no log.
    """
    log, committed, batch = _read(Path(folder))
    steps = committed if committed is not None else int(log["step"].to_numpy().max(initial=-1)) + 1
    log = log.filter(pc.less(log["step"], steps))
    if not log.num_rows:
        return LogCheck(steps == 0, 0, 0, steps * (batch or 1), steps)
    content = _codes(log)
    content = content[np.argsort(content[:, 0], kind="stable")]
    position, step = content[:, 0], content[:, 1]
    first = np.flatnonzero(np.diff(position, prepend=-1))  # first line of each position
    unequal = (content[1:] != content[:-1]).any(axis=1) & (position[1:] == position[:-1])
    duplicates = len(np.unique(position[1:][unequal]))
    batch = batch or _batch(position, step)
    in_place = len(np.unique(position[position // batch == step]))
    missing = max(0, steps * batch - in_place)
    return LogCheck(not duplicates and not missing, len(first), duplicates, missing, steps)


def _read(folder: Path) -> tuple[pa.Table, int | None, int | None]:
    """The lines of the log, and, if known, the number of committed steps and of positions per step."""
    if not any(folder.glob("rank-*.parquet")):
        raise UsageError(f"There is no sample log in {folder}: pass the folder that was data.sample_log of a run.")
    try:
        log = pq.read_table(folder, columns=_CONTENT)
        noted = folder / "_committed.json"
        state = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else {}
    except (OSError, ValueError, KeyError) as error:  # includes the errors of pyarrow
        raise UserError(f"The sample log in {folder} can't be read ({error}): check the disk.") from None
    return log, state.get("steps"), state.get("batch")


def _codes(log: pa.Table) -> np.ndarray:
    """int64 [lines, columns]: the log with strings encoded as numbers; position and step come first."""
    columns = [log["position"].to_numpy(), log["step"].to_numpy(), log["row"].to_numpy()]
    columns.append(log["view_hash"].to_numpy().view(np.int64))
    for name in ("sample_key", "shard", "outcome", "stand_in_for"):
        texts = log[name].cast(pa.large_string()).combine_chunks()
        columns.append(texts.dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64))
    return np.stack(columns, axis=1)


def _batch(position: np.ndarray, step: np.ndarray) -> int:
    """Positions per step, estimated from the lines: a complete last step ends at (step + 1) * batch."""
    of_steps = np.unique(np.stack([step, position], axis=1), axis=0)[:, 0]
    largest = int(np.unique(of_steps, return_counts=True)[1].max())
    return max(largest, int((-(-(position + 1) // (step + 1))).max()))
