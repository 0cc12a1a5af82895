"""Sends metrics from a thread, so that training never waits for MLflow and never ends because of it."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import asdict
from types import TracebackType

from swav_platform.registry.card import note_run_id, read_card
from swav_platform.registry.connect import connect, short_limits
from swav_platform.registry.errors import TrackingError, explained
from swav_platform.registry.points import Sender, final_steps
from swav_platform.registry.runs import open_run
from swav_platform.registry.store import path_of
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import Health, read_health
from swav_platform.runs.metrics import metrics_state

log = logging.getLogger("swav")

FLUSH_SECONDS = 2.0
LONGEST_PAUSE = 30.0  # seconds between two tries while MLflow is away
CLOSE_SECONDS = 10.0


class Tracker:
    """Keeps the MLflow run of a folder up to date. Makes the run if MLflow was away when training began.

    Use it as a context manager, where no other process writes to the folder.
    """

    def __init__(self, folder: RunFolder, uri: str) -> None:
        self._folder, self._uri = folder, uri
        self._sender: Sender | None = None
        self._health: Health | None = None  # that MLflow has
        self._away_since: float | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="tracker")

    def __enter__(self) -> Tracker:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        pause = FLUSH_SECONDS
        while True:
            last = self._closing.wait(pause)
            if self._sender is None and not last and metrics_state(self._folder.path) is None:
                continue  # MLflow takes seconds of a core to import, which the first step needs
            try:
                with short_limits(), explained(self._uri):
                    self._send()
                self._answered()
                pause = FLUSH_SECONDS
            except Exception as error:  # trouble with tracking never ends a run
                self._failed(error)
                pause = min(LONGEST_PAUSE, 2 * pause)
            if last:
                return

    def _send(self) -> None:
        if self._sender is None:
            self._sender = sender_of(self._folder, self._uri)
        self._sender.send(final_steps(self._folder))
        health = read_health(self._folder.path)
        if health is not None and health != self._health:
            tags = {f"swav.health.{key}": str(value) for key, value in asdict(health).items() if value is not None}
            self._sender.tags(tags)
            self._health = health

    def _answered(self) -> None:
        if self._away_since is not None:
            log.warning(
                "MLflow answers again after %.0f s; all metrics so far have been sent.", time.monotonic() - self._away_since
            )
            self._away_since = None

    def _failed(self, error: Exception) -> None:
        if not (isinstance(error, TrackingError) and error.may_pass):
            self._sender = None  # the run may have been deleted: find it again
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("Metrics can't be sent now and will be sent later. %s", error)


def sender_of(folder: RunFolder, uri: str) -> Sender:
    """A sender for the run in MLflow, which is found, restored or made. Raises whatever MLflow raises."""
    card = read_card(folder)
    run_id = open_run(uri, folder.name, card, artifacts_of(folder, uri))
    if run_id != card.run_id or folder.info().get("run_id") != run_id:
        note_run_id(folder, card, run_id)
    return Sender(folder, connect(uri), run_id)


def artifacts_of(folder: RunFolder, uri: str) -> str | None:
    """Where a run of a SQLite store has its files, because no server stores them; None with a server."""
    if (path := path_of(uri)) is None:
        return None
    return ((folder.path if folder.url is None else path).parent / "mlartifacts").as_uri()
