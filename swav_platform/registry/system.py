"""System metrics of a node, by MLflow's own monitor."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

from swav_platform.registry import store
from swav_platform.registry.card import read_card
from swav_platform.registry.connect import quiet
from swav_platform.runs.folder import RunFolder

log = logging.getLogger("swav")

LOOK_SECONDS = 5.0


@contextlib.contextmanager
def node_metrics(folder: RunFolder, uri: str) -> Iterator[None]:
    """Records CPU, memory, disk, network and GPUs of this node as `system/NODE/…` while the block runs."""
    closing = threading.Event()
    thread = threading.Thread(target=_watch, args=(folder, store.with_patience(uri), closing), daemon=True, name="node-metrics")
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join(LOOK_SECONDS)


def _watch(folder: RunFolder, uri: str, closing: threading.Event) -> None:
    """Starts a monitor as soon as MLflow knows the run, and another one when that ends because MLflow was away."""
    monitor: Any = None
    told = False
    while not closing.wait(LOOK_SECONDS):
        try:
            if (run_id := read_card(folder).run_id) and (monitor is None or not monitor._process.is_alive()):
                monitor = _started(run_id, uri)
        except Exception as error:  # must not end a training
            if not told:
                log.warning("System metrics of this node can't be recorded now: %s", error)
            told = True
    if monitor is not None:
        monitor.finish()


def _started(run_id: str, uri: str) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    quiet()
    node = socket.gethostname().replace("/", "_")
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, node_id=node, tracking_uri=uri)
    monitor.start()
    return monitor
