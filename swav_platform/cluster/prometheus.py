"""Exports a run's progress as Prometheus metrics. Each Ray node's agent serves them with the prefix `ray_`."""

from __future__ import annotations

import logging
from typing import Any

from ray.util.metrics import Counter, Gauge

from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.training.loop import Progress

log = logging.getLogger("swav")


class Exporter:
    """Metrics of rank 0. Counters start at zero with the process, as is usual for Prometheus."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run.encode("ascii", "backslashreplace").decode()}  # Ray takes ASCII only
        self._failed = False
        self._loss = Gauge("swav_train_loss", "Loss of the last step.", ("run",))
        self._steps = self._counter("train_steps_total", "Completed steps.")
        self._images = self._counter("data_images_total", "Positions consumed.")
        self._outcomes = self._counter("data_outcomes_total", "Positions by outcome of their original sample.", "outcome")
        self._wait = self._counter("data_wait_seconds_total", "Time that rank 0 waited for rows.")
        self._read = self._counter("data_read_seconds_total", "Time that data tasks spent reading.")
        self._decode = self._counter("data_decode_seconds_total", "Time that data tasks spent decoding.")
        self._views = self._counter("data_views_seconds_total", "Time that data tasks spent making views.")
        self._bytes = self._counter("data_read_bytes_total", "Encoded bytes of all images read, good and bad.")

    def progress(self, progress: Progress) -> None:
        """Never raises: a metric must not end a training."""
        try:
            self._export(progress)
        except Exception as error:
            if not self._failed:
                log.warning(
                    "Metrics for Prometheus could not be exported (%s: %s); training goes on.", type(error).__name__, error
                )
            self._failed = True

    def _export(self, progress: Progress) -> None:
        counters, costs = progress.counters, progress.counters.costs
        self._loss.set(progress.loss, self._tags)
        self._add(self._steps, 1)
        self._add(self._images, counters.images)
        self._add(self._wait, progress.waited)
        self._add(self._read, costs.read_seconds)
        self._add(self._decode, costs.decode_seconds)
        self._add(self._views, costs.views_seconds)
        self._add(self._bytes, costs.read_bytes)
        for outcome in Outcome:
            self._add(self._outcomes, counters.outcomes[outcome], outcome=outcome.word)

    def _add(self, counter: Any, value: float, **tags: str) -> None:
        if value > 0:  # Ray rejects an increment of zero
            counter.inc(value, self._tags | tags)

    def _counter(self, name: str, text: str, *tags: str) -> Any:
        return Counter(f"swav_{name}", text, ("run", *tags))
