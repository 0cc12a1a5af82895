"""What a run writes down beside its weights: metrics of each step, the sample log, the ledger of what was refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from swav_platform.atomic import cure, write_text
from swav_platform.config import Config
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Event
from swav_platform.data.ledger.sample_log import SampleLog
from swav_platform.errors import UserError
from swav_platform.methods.comm import Comm
from swav_platform.training.collectives import gather_bytes

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row


class Journal:
    """One on each rank. Nothing in it counts before `commit`: what a crash took is written again by the steps made again."""

    def __init__(self, config: Config, run_dir: Path, comm: Comm, ledger: Ledger) -> None:
        self.comm, self.ledger, self.folder, self.batch = comm, ledger, run_dir, config.train.batch
        self.events: list[Event] = []  # of this rank's rows since the last gathering
        self.metrics: TextIO | None = None
        self.sample_log = SampleLog(config.data.sample_log, comm.rank) if config.data.sample_log else None

    def open(self, steps: int) -> None:
        """Takes up the files at `steps` finished steps. Raises UserError when they can't be written."""
        try:
            if self.comm.rank == 0:
                self.metrics = open_metrics(self.folder / "metrics.jsonl", steps)
            if self.sample_log is not None:  # told before hours of training, not after
                self.sample_log.folder.mkdir(parents=True, exist_ok=True)
                probe = self.sample_log.folder / f".probe-{self.comm.rank}"
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise UserError(
                f"{error.filename} can't be written ({error.strerror}): {cure(error)} or name another place (run.out, data.sample_log)."
            ) from error
        if steps:
            self.commit(steps)  # a crash may have come between the checkpoint and this

    def rows(self, step: int, rows: Sequence[Row]) -> None:
        """Notes the rows of a step that is done."""
        for row in rows:
            self.events.extend(row.events)
            if self.sample_log is not None:
                from swav_platform.rows.make import view_hashes  # brings image libraries with it

                self.sample_log.append(step, row, view_hashes(row))

    def line(self, values: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl (rank 0). Raises UserError when the disk is full."""
        if self.metrics is None:
            return
        try:
            self.metrics.write(json.dumps(values) + "\n")
            self.metrics.flush()
        except OSError as error:
            raise UserError(
                f"{self.metrics.name} can't be written ({error.strerror or error}): {cure(error)}, then go on with --resume. "
                f"Checkpoints are untouched."
            ) from error

    def gather(self) -> Ledger:
        """The ledger of all ranks, on each; in the order of positions, so it is the same for any number of ranks."""
        parts = gather_bytes(pickle.dumps(self.events), self.comm)
        events = [event for part in parts for event in pickle.loads(part)]  # written by our own ranks a moment ago
        self.ledger.add(sorted(events, key=lambda e: (e.position, e.attempt)))
        self.events = []
        return self.ledger

    def flush(self) -> None:
        """Brings to the disk what the checkpoint that follows vouches for. Raises UserError when the disk is full."""
        if self.sample_log is not None:
            self.sample_log.flush()
        if self.metrics is not None:
            try:
                os.fsync(self.metrics.fileno())
            except OSError as error:
                raise UserError(
                    f"{self.metrics.name} can't be written ({error.strerror}): {cure(error)}, then go on with --resume."
                ) from error

    def commit(self, steps: int) -> None:
        """After the checkpoint of `steps` steps is there (rank 0)."""
        if self.comm.rank == 0:
            self.write_ledger()
            if self.sample_log is not None:
                self.sample_log.commit(steps, self.batch)

    def write_ledger(self) -> None:
        if self.comm.rank == 0:
            self.ledger.write(self.folder / "ledger.parquet")

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()


def open_metrics(path: Path, steps: int) -> TextIO:
    """metrics.jsonl cut back to its first `steps` steps, open to go on. Raises UserError when it can't be written."""
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] < steps:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                break  # the end of a line that a crash cut off
    write_text(path, "".join(kept))
    return path.open("a")
