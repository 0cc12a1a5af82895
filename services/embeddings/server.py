"""The service on a port."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from services.embeddings.app import create_app
from services.embeddings.listener import listen, url
from services.embeddings.settings import ServiceSettings
from swav_platform.errors import UserError

OnReady = Callable[[str], None]


def serve(settings: ServiceSettings, host: str | None = None, port: int | None = None, on_ready: OnReady | None = None) -> None:
    """Serves until SIGINT or SIGTERM; `host` and `port` win over the settings'.

    `on_ready` gets the URL, with the port in use, once requests are answered. Raises UserError when the port can't be
    had (told before the model is loaded) or when the model or the embeddings can't be loaded.
    """
    place = (settings.host if host is None else host, settings.port if port is None else port)
    with listen(*place) as listener, _terminate_as_interrupt():
        server = _Server(create_app(settings), lambda: on_ready(url(listener)) if on_ready else None)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn has stopped in order, then repeats the signal
            return


@contextmanager
def serving(settings: ServiceSettings, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The service in a thread of this process, for the length of the block; gives its URL. For demos and tests."""
    with listen(host, port) as listener:
        ready = threading.Event()
        server = _Server(create_app(settings), ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="service", daemon=True)
        thread.start()
        try:
            while not ready.wait(0.05):
                if not thread.is_alive():
                    raise UserError(f"The embeddings service at {url(listener)} ended while it started; its log tells why.")
            yield url(listener)
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that whoever called can clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """uvicorn tells nobody when it has started, so its start is followed by a call."""

    def __init__(self, app: FastAPI, started: Callable[[], None]) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=10))
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._tell()
