"""`RUN/health.json`: the current verdict about a run, and what it waits for. Small, replaced atomically, read by anyone."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from swav_platform.atomic import write_text
from swav_platform.errors import UserError
from swav_platform.failures import LogWaits, Tell, Wait, duration

NAME = "health.json"
WAITING = "waiting"


@dataclass(frozen=True)
class Health:
    """state: starting, learning, waiting, stuck, collapsed, diverging, starved or broken. since: seconds since 1970."""

    state: str
    because: str = ""
    do: str = ""
    since: float = 0.0
    step: int | None = None
    waiting_for: str | None = None  # a place or resource, while state is waiting
    workers: int | None = None
    restarts: int = 0

    def __str__(self) -> str:
        if self.state != WAITING:
            return f"{self.state}: {self.because}" if self.because else self.state
        return f"waiting for {self.waiting_for}: {self.because}, {duration(max(0.0, time.time() - self.since))}"


def read_health(run: Path) -> Health | None:
    """None if there is no verdict, or none that can be read."""
    try:
        return health_in((run / NAME).read_bytes())
    except OSError:
        return None


def health_in(content: bytes) -> Health | None:
    """The verdict in a file; None if it can't be read."""
    try:
        known = {field.name for field in fields(Health)}
        return Health(**{name: value for name, value in json.loads(content).items() if name in known})
    except (ValueError, TypeError, AttributeError):
        return None


def write_health(run: Path, health: Health) -> None:
    """Raises UserError if the file can't be written."""
    write_text(run / NAME, json.dumps(asdict(health)))


def say_waiting(run: Path, wait: Wait) -> None:
    """Notes what a run waits for. Keeps the time at which the same wait began."""
    before = read_health(run)
    same = before is not None and before.state == WAITING and before.waiting_for == wait.place
    since = before.since if same and before else time.time() - wait.seconds
    write_health(run, Health(WAITING, wait.why, since=since, waiting_for=wait.place, step=before.step if before else None))


def say_waited(run: Path) -> None:
    """The run no longer waits: removes the note of a wait. A verdict of another kind stays."""
    before = read_health(run)
    if before is not None and before.state == WAITING:
        with contextlib.suppress(OSError):
            (run / NAME).unlink()


def to_log_and_health(run: Path) -> Tell:
    """A `Tell` that writes to the log and to health.json of the run, where a killed attempt may have left a wait."""
    to_log = LogWaits()
    say_waited(run)

    def tell(wait: Wait | None) -> None:
        to_log(wait)
        with contextlib.suppress(UserError):  # a full disk ends the run elsewhere
            if wait is None:
                say_waited(run)
            else:
                say_waiting(run, wait)

    return tell
