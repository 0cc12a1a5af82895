"""Makes the waits of data tasks for storages visible: task -> `Segments` actor -> rank 0 -> log, health.json, terminal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import ray

from swav_platform.failures import Tell

LOOK_SECONDS = 2.0
SHORT = 5.0  # seconds of a wait that nobody needs to know of


class WaitReporter:
    """Thread of rank 0 that asks the `Segments` actors what their data tasks wait for. It lives as long as the process."""

    def __init__(self, segments: Sequence[Any], tell: Tell) -> None:
        self._segments, self._tell, self._told = segments, tell, False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="waits", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and removes its note from health.json."""
        self._stopped.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # an actor is busy or gone: the ranks report that
                self._look()
        if self._told:
            self._tell(None)

    def _look(self) -> None:
        answers = ray.get([actor.longest_wait.remote() for actor in self._segments], timeout=10)
        waits = [wait for wait in answers if wait is not None and wait.seconds >= SHORT]
        if waits:
            self._told = True
            self._tell(max(waits, key=lambda wait: wait.seconds))
        elif self._told:
            self._told = False
            self._tell(None)
