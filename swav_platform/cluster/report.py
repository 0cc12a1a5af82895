"""Tells the user how a run goes: lines in the log, which `swav status` reads, and health.json in the run's folder."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from swav_platform.cluster.room import Group
from swav_platform.errors import UserError
from swav_platform.runs.health_file import WAITING, Health, read_health, write_health

REPEAT_SECONDS = 60.0

STARTS = "workers start"

_STEP = re.compile(r"^step (\d+)/(\d+)")
_GROUP = re.compile(r"^workers (\d+), ")
_RESTART = re.compile(r"^restart (\d+): ")
_WAITING = re.compile(r"^waiting for (.+), \d+ s so far$")
_HEALTH = re.compile(r"^health (\w+): ")
_GOES_ON = re.compile(r"^goes on after ")


class Report:
    """Of one command. tell: prints a line. Thread-safe."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder, self._tell, self._lock = folder, tell, threading.Lock()
        self._workers, self._restarts, self._step = 0, 0, 0
        self._waiting: str | None = None
        self._since = self._told = time.monotonic()

    def group(self, group: Group) -> None:
        """A group of workers starts."""
        with self._lock:
            self._workers = group.workers
            self._end_of_wait()
            self._tell(f"workers {group.workers}, data tasks {group.tasks}, on {'GPUs' if group.device == 'cuda' else 'CPUs'}")
            self._write("starting", STARTS)

    def restart(self, why: str) -> None:
        with self._lock:
            self._restarts += 1
            self._tell(f"restart {self._restarts}: {why}")

    def step(self, step: int) -> None:
        """Called every second with the number of finished steps."""
        with self._lock:
            if step > self._step and self._waiting is None:
                before = read_health(self._folder)
                if before is None or before.because == STARTS:  # the training loop's verdict follows
                    self._write("learning", "steps are made")
            self._step = step

    def waiting(self, what: str | None, seconds: float = 30.0) -> None:
        """Called every second during a wait, and with None when there is none. seconds: that passed before the first call."""
        with self._lock:
            if what is None:
                self._end_of_wait()
                return
            now = time.monotonic()
            if self._waiting is None:
                self._since = now - seconds
            noted = read_health(self._folder)
            if noted is not None and noted.state == WAITING and noted.workers is None:  # by the training loop, which knows better
                what = f"{noted.waiting_for}: {noted.because}"
            new, self._waiting = self._waiting is None or _subject(self._waiting) != _subject(what), what
            if new or now - self._told > REPEAT_SECONDS:
                self._told = now
                self._tell(f"waiting for {what}, {now - self._since:.0f} s so far")
                if noted is None or noted.state != WAITING or noted.workers is not None:
                    self._write(WAITING, "no step was made")

    def _end_of_wait(self) -> None:
        if self._waiting is not None:
            self._tell(f"goes on after {time.monotonic() - self._since:.0f} s")
            self._waiting = None
            self._write("learning", "steps are made again")

    def _write(self, state: str, because: str) -> None:
        since = time.time() - (time.monotonic() - self._since if state == WAITING else 0)
        found = Health(
            state, because, "", since, self._step, waiting_for=self._waiting, workers=self._workers, restarts=self._restarts
        )
        with suppress(UserError):  # a full disk stops the run elsewhere
            write_health(self._folder, found)


def _subject(what: str) -> str:
    """The text without its numbers of seconds."""
    return re.sub(r"\d+ s\b", "", what)


def read_log(text: str) -> dict[str, Any]:
    """The state that the lines of a log tell: step, steps, workers, waiting_for, restarts, health."""
    found: dict[str, Any] = dict.fromkeys(("step", "steps", "workers", "waiting_for"))
    found["restarts"], verdict = 0, None
    for line in text.splitlines():
        if match := _STEP.match(line):
            found |= {"step": int(match[1]), "steps": int(match[2]), "waiting_for": None}
        elif match := _GROUP.match(line):
            found |= {"workers": int(match[1]), "waiting_for": None}
        elif match := _RESTART.match(line):
            found["restarts"] = int(match[1])
        elif match := _WAITING.match(line):
            found["waiting_for"] = match[1]
        elif match := _HEALTH.match(line):
            verdict = match[1]
        elif _GOES_ON.match(line):
            found["waiting_for"] = None
    found["health"] = "waiting" if found["waiting_for"] else verdict or ("starting" if found["step"] is None else "learning")
    return found
