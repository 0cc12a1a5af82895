"""Writes the checkpoints of a run. In an object store, a thread uploads them while training continues.

At most one upload runs at a time, so host memory holds at most one snapshot. A failed upload is repeated: it does not end the run.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from swav_platform.errors import UserError
from swav_platform.failures import Wait, patiently
from swav_platform.runs.folder import Confirm, RunFolder
from swav_platform.runs.records import Records
from swav_platform.runs.storage import Place
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.checkpoints.store import Snapshot

log = logging.getLogger("swav")

_REMINDER = 30.0  # seconds between two messages about a wait


class Writer:
    """Writes the checkpoints of one run and keeps the newest `keep`.

    confirm: raises UserError if another process writes to the run. patience: seconds to repeat an upload that training waits for.
    """

    def __init__(self, folder: RunFolder, keep: int, confirm: Confirm, patience: float) -> None:
        self.folder: Place = folder.checkpoints
        self._keep, self._confirm, self._patience = keep, confirm, patience
        self._records = Records(folder) if folder.url else None
        self._thread: threading.Thread | None = None
        self._problem: UserError | None = None
        self._steps, self._fault = 0, ""  # of the upload

    def begin(self, steps: int) -> None:
        """Brings the records of a run with `steps` finished steps to this machine."""
        if self._records is not None:
            self._records.restore(steps)

    @property
    def busy(self) -> bool:
        """Whether an upload is running."""
        return self._thread is not None and self._thread.is_alive()

    def write(self, snapshot: Snapshot, after: Callable[[], None], before: Callable[[], None] = lambda: None) -> None:
        """Writes a checkpoint, or begins to upload it. before and after: called before it begins and when it is complete, possibly in
        another thread, and possibly again after a failure.

        Waits for an earlier upload. Raises UserError if another process writes to the run, or a disk is full.
        """
        self.finish()
        if self._records is None:
            self._write(snapshot, before, after)
            return
        self._steps, self._fault = snapshot.steps, ""
        records = self._records.ready(snapshot.steps)

        def first() -> None:
            before()
            records()

        self._thread = threading.Thread(target=self._upload, args=(snapshot, first, after), name="upload", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the UserError that ended an upload."""
        if self._problem is not None:
            raise self._problem

    def say_skipped(self, steps: int) -> None:
        """Says that there is no checkpoint because of an upload that is still running."""
        if self._thread is not None:
            log.warning(f"No checkpoint of step {steps}: {self._wait()}.")

    def finish(self) -> None:
        """Waits for the end of an upload and says so. Raises UserError if it fails for longer than the patience."""
        start = time.monotonic()
        due = start + 2
        while self._thread is not None:
            self._thread.join(0.5)
            now = time.monotonic()
            if not self._thread.is_alive():
                self._thread = None
            elif self._fault and now - start > self._patience:
                raise UserError(
                    f"The checkpoint of step {self._steps} can't be written to {self.folder} ({self._fault}). Earlier checkpoints are not "
                    f"affected; check the storage, then resume with --resume."
                )
            elif now >= due:
                log.warning(f"Waiting, {now - start:.0f} s: {self._wait()}.")
                due = now + _REMINDER
        self.check()

    def _wait(self) -> str:
        return f"the upload of the checkpoint of step {self._steps} is still running" + (
            f" ({self._fault})" if self._fault else ""
        )

    def _write(self, snapshot: Snapshot, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._confirm()
        before()
        checkpoints.save(self.folder, snapshot, self._confirm)
        after()
        if self._records is not None:
            self._records.publish()
        checkpoints.prune(self.folder, self._keep)

    def _upload(self, snapshot: Snapshot, before: Callable[[], None], after: Callable[[], None]) -> None:
        try:
            patiently(lambda: self._write(snapshot, before, after), math.inf, self._note)
        except UserError as error:
            self._problem = error
        except Exception as error:  # a thread's exception would be lost
            self._problem = UserError(
                f"The checkpoint of step {snapshot.steps} can't be uploaded ({type(error).__name__}: {error}). Resume with --resume."
            )

    def _note(self, wait: Wait | None) -> None:
        if wait is None:
            return
        if not self._fault:
            log.warning(f"The checkpoint of step {self._steps} is not uploaded yet; trying again. {wait}")
        self._fault = f"{wait.place}: {wait.why}"
