"""Records of a run besides its weights: metrics of each step, the sample log, and the ledger of refused samples."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swav_platform.atomic import cure
from swav_platform.config import Config
from swav_platform.data.ledger.outcomes import Event
from swav_platform.data.ledger.parts import THUMBNAILS, LedgerWriter, without_thumbnail
from swav_platform.data.ledger.sample_log import SampleLog
from swav_platform.errors import UserError
from swav_platform.methods.comm import Comm
from swav_platform.runs.metrics import MetricsWriter
from swav_platform.training.collectives import gather_bytes

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row


class Journal:
    """The records of one rank. They count from `commit` on; steps after the last commit are repeated and recorded again."""

    def __init__(self, config: Config, run_dir: Path, comm: Comm, earlier: bytes = b"") -> None:
        """earlier: the ledger of a checkpoint of an older version (rank 0)."""
        self.comm, self.folder, self.batch, self._earlier = comm, run_dir, config.train.batch, earlier
        self.ledger = LedgerWriter(run_dir)
        self._thumbnails = 0  # of this rank; more than THUMBNAILS are never kept
        self.events: list[Event] = []  # of this rank's rows since the last `gather`
        self.metrics: MetricsWriter | None = None
        self.sample_log = SampleLog(config.data.sample_log, comm.rank) if config.data.sample_log else None

    def open(self, steps: int) -> None:
        """Opens the files for a run with `steps` finished steps. Raises UserError when they can't be written."""
        try:
            if self.comm.rank == 0:
                self.metrics = MetricsWriter(self.folder, steps)
                self.ledger.open(steps, self._earlier)
            if self.sample_log is not None:  # fail before hours of training, not after
                self.sample_log.folder.mkdir(parents=True, exist_ok=True)
                probe = self.sample_log.folder / f".probe-{self.comm.rank}"
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise UserError(
                f"{error.filename} can't be written ({error.strerror}): {cure(error)} or set run.out or data.sample_log to another folder."
            ) from error
        if steps:
            self.commit(steps)  # a crash may have prevented the commit after this checkpoint

    def rows(self, step: int, rows: Sequence[Row]) -> None:
        """Records the rows of a finished step."""
        for row in rows:
            self.events.extend(map(self._bounded, row.events))
            if self.sample_log is not None:
                from swav_platform.rows.make import view_hashes  # imports image libraries

                self.sample_log.append(step, row, view_hashes(row))

    def line(self, values: Mapping[str, Any]) -> None:
        """Adds the metrics of a step, with the time (rank 0). Raises UserError when the disk is full."""
        if self.metrics is not None:
            self.metrics.append({**values, "time": round(time.time(), 3)})

    def _bounded(self, event: Event) -> Event:
        if event.thumbnail is None or self._thumbnails >= THUMBNAILS:
            return without_thumbnail(event)
        self._thumbnails += 1
        return event

    def gather(self, steps: int) -> None:
        """Adds the events of all ranks to the ledger, up to `steps` steps. Their order is by position, so it does not depend on the
        number of ranks. Raises UserError when the disk is full."""
        parts = gather_bytes(pickle.dumps(self.events), self.comm)
        self.events = []
        if self.comm.rank == 0:
            events = [event for part in parts for event in pickle.loads(part)]  # safe: the bytes come from ranks of this run
            self.ledger.append(sorted(events, key=lambda e: (e.position, e.attempt)), steps)

    def flush(self) -> None:
        """Flushes to disk what the next checkpoint refers to. Raises UserError when the disk is full."""
        if self.sample_log is not None:
            self.sample_log.flush()
        if self.metrics is not None:
            self.metrics.sync()

    def commit(self, steps: int) -> None:
        """Makes the records valid after the checkpoint of `steps` steps was written (rank 0)."""
        if self.comm.rank == 0 and self.sample_log is not None:
            self.sample_log.commit(steps, self.batch)

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()
