"""Runs the service on a port.

The application, and torch with it, is imported only after the port is open: a busy port is reported at once.
"""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from services.embeddings.settings import ServiceSettings
from swav_platform.errors import UserError

if TYPE_CHECKING:
    from services.embeddings.edge.drain import Drain

OnReady = Callable[[str], None]


def serve(settings: ServiceSettings, host: str | None = None, port: int | None = None, on_ready: OnReady | None = None) -> None:
    """Serves until SIGINT or SIGTERM. `host` and `port` override those of the settings.

    `on_ready` is called with the URL, including the actual port, once the service answers requests. Raises UserError
    if the port cannot be opened (checked before the model is loaded), or if the model or the embeddings cannot be loaded.
    """
    address = (settings.host if host is None else host, settings.port if port is None else port)
    with listen(*address) as listener, _terminate_as_interrupt():
        if settings.workers > 1:
            from services.embeddings.scale.workers import run

            run(settings, listener, url(listener), lambda: on_ready(url(listener)) if on_ready else None)
            return
        server = _Server(settings, lambda: on_ready(url(listener)) if on_ready else None)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises the signal again after an orderly shutdown
            return


@contextmanager
def serving(settings: ServiceSettings, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Runs the service in a thread of this process for the length of the block, and yields its URL."""
    with listen(host, port) as listener:
        ready = threading.Event()
        server = _Server(settings, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="service", daemon=True)
        thread.start()
        try:
            while not ready.wait(0.05):
                if not thread.is_alive():
                    raise UserError(
                        f"The embeddings service at {url(listener)} stopped during start-up. See its log for the cause."
                    )
            yield url(listener)
        finally:
            server.should_exit = True
            thread.join()


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket; port 0 selects a free port. Raises UserError with host, port, cause and remedy."""
    if port > 65535:  # create_server would raise OverflowError and leave its socket open
        raise UserError(_refusal(host, port, OverflowError("port must be 0-65535")))
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UserError(_refusal(host, port, error)) from error


def _refusal(host: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use. Stop the program that uses it, or serve on another port (0 selects a free one)."
    if number == errno.EACCES:
        return f"Port {port} of {host} requires privileges that this user lacks. Use a port above 1023 (0 selects a free one)."
    return f"Cannot listen on {host} port {port} ({error}). Use an address of this machine and a port from 0 to 65535."


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt as SIGINT does, so that callers can clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """Calls `started` once requests are answered; uvicorn has no hook for that."""

    def __init__(self, settings: ServiceSettings, started: Callable[[], None]) -> None:
        from services.embeddings.app import create_app
        from services.embeddings.edge.protocol import options

        app = create_app(settings)
        super().__init__(uvicorn.Config(app, **options(settings)))
        self._tell = started
        self._drain: Drain = app.state.drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins to drain; the next ones close at once."""
        self._drain.begin(lambda: super(_Server, self).handle_exit(sig, frame))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._tell()
