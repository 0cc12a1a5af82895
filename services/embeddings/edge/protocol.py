"""How uvicorn serves: its options, and its HTTP protocol with our error shape for what is not HTTP."""

from __future__ import annotations

import json
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from services.embeddings.errors import Fault
from services.embeddings.settings import ServiceSettings


class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # chosen at run time: httptools if it is installed, else h11
    def shutdown(self) -> None:
        """At the end of the server: what was accepted is answered; bodies that are still coming have to hurry."""
        if self.scope and "app" in self.scope:
            self.scope["app"].state.service.bodies.close()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": Fault("http_error", f"{msg} Send a valid request in HTTP/1.1.").as_json()}).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


def options(settings: ServiceSettings) -> dict[str, Any]:
    """Arguments of uvicorn.Config."""
    return {
        "log_level": "warning",
        "access_log": False,
        "lifespan": "on",
        "timeout_graceful_shutdown": 10,
        "timeout_keep_alive": settings.keep_alive,
        "http": Protocol,
        "server_header": False,
    }
