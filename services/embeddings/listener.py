"""The port of the service. Imports nothing heavy: a port that can't be had is told at once."""

from __future__ import annotations

import errno
import socket

from swav_platform.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UserError naming host, port, cause and remedy."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise UserError(_refusal(host, port, error)) from error


def _refusal(host: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return (
            f"Port {port} of {host} is in use by another program: stop that one, or serve on another port (0 takes a free one)."
        )
    if number == errno.EACCES:
        return f"Port {port} of {host} needs privileges that this user lacks: serve on a port above 1023 (0 takes a free one)."
    return f"The service can't listen on {host} port {port} ({error}): name an address of this machine and a port up to 65535."


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
