"""The metrics of a run: JSON lines with ascending `step`, written by rank 0 and read by anyone, in memory of one line.

`metrics.jsonl` is one file that only grows; what a crash left after the last checkpoint is cut off on resume. Everything that reads
metrics uses this module.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from swav_platform.atomic import cure
from swav_platform.errors import UserError

NAME = "metrics.jsonl"
_LONGEST_LINE = 64 * 2**10  # bytes


class MetricsWriter:
    """Appends the metrics of a run. Raises UserError if the file can't be written."""

    def __init__(self, run: Path, steps: int) -> None:
        """Opens the metrics of a run with `steps` finished steps: those of later steps are cut off."""
        self.path = run / NAME
        try:
            run.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("a+b", buffering=0)
            self._file.truncate(_start_of(self._file, steps))
        except OSError as error:
            raise self._failed(error) from error

    def append(self, values: Mapping[str, Any]) -> None:
        """Adds the line of a step."""
        line = memoryview(json.dumps(values).encode() + b"\n")
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Flushes to disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self._file.close()

    def _failed(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path} can't be written ({error.strerror or error}): {cure(error)}, then resume with --resume. "
            f"Checkpoints are not affected."
        )


def read_metrics(run: Path, first: int = 0) -> Iterator[dict[str, Any]]:
    """The lines of a run in order, from step `first` on. None if the run has no metrics. A line that is being written is left out."""
    try:
        with (run / NAME).open("rb") as file:
            file.seek(_start_of(file, first))
            for line in file:
                if (values := _parsed(line)) is not None:
                    yield values
    except FileNotFoundError:
        return


def last_metrics(run: Path) -> dict[str, Any] | None:
    """The newest line of a run; None if there is none."""
    try:
        with (run / NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
            complete = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    return _parsed(complete[-1] + b"\n") if complete else None


def metrics_state(run: Path) -> tuple[int, int] | None:
    """Changes when lines are added or cut off: size and time of change of the file; None if there is none."""
    try:
        found = (run / NAME).stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line)) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _start_of(file: BinaryIO, step: int) -> int:
    """Where the line of `step` begins, or of the first later step, or the rest of a line that a crash cut off. Bisects the file."""
    low, high = 0, file.seek(0, os.SEEK_END)
    while low < high:
        middle = (low + high) // 2
        file.seek(max(middle - 1, 0))
        if middle:
            file.readline()  # the rest of the line before
        start = file.tell()
        line = file.readline()
        values = _parsed(line)
        if start >= high or values is None or int(values["step"]) >= step:
            high = middle
        else:
            low = start + len(line)
    return low
