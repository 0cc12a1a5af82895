"""Several processes that answer on one port. uvicorn starts them again if they die."""

from __future__ import annotations

import functools
import os
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from services.embeddings.edge.protocol import options
from services.embeddings.metrics import SHARED
from services.embeddings.settings import ServiceSettings
from swav_platform.errors import UserError

START = 120
"""Seconds that a worker may take to import torch on a busy machine. uvicorn would kill it after five, again and again."""


def run(settings: ServiceSettings, listener: socket.socket, url: str, started: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM. Each worker gets its share of the cores, unless `threads` says otherwise.

    Raises UserError if a model cannot be loaded: it is loaded here once, because a worker that fails would be started for ever.
    """
    from services.embeddings.models.sources import load

    cores = len(os.sched_getaffinity(0))
    settings = replace(settings, threads=settings.threads or max(1, cores // settings.workers))
    for source in settings.sources:
        load(source, settings)
    from services.embeddings.app import create_app

    config = uvicorn.Config(
        functools.partial(create_app, replace(settings, alone=False)),
        factory=True,
        workers=settings.workers,
        timeout_worker_healthcheck=START,
        **options(settings),
    )
    threading.Thread(target=_tell, args=(url, started), daemon=True).start()
    workers = Multiprocess(config, sockets=[listener])
    with tempfile.TemporaryDirectory(prefix="swav-metrics-") as folder:
        os.environ[SHARED] = folder  # workers inherit it
        try:
            workers.run()
        finally:
            del os.environ[SHARED]
    if any(process.exitcode == STARTUP_FAILURE for process in workers.processes):
        raise UserError("A worker of the service failed to start. Its messages above have the cause.")


def _tell(url: str, started: Callable[[], None]) -> None:
    """Calls `started` once a worker answers."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with direct.open(f"{url.replace('0.0.0.0', '127.0.0.1')}/healthz", timeout=600):
                started()
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
