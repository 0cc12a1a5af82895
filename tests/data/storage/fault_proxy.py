"""A proxy in front of an HTTP server that injects faults into a share of the answers, with a fixed seed."""

from __future__ import annotations

import http.client
import http.server
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

FAULTS = ("503", "reset", "slow", "truncated")


@dataclass
class FaultProxy:
    """share: of the requests with a fault. sent: bytes of the bodies. met: faults so far."""

    port_behind: int
    share: float = 0.0
    url: str = ""
    sent: int = 0
    requests: int = 0
    met: Counter[str] = field(default_factory=Counter)
    random: random.Random = field(default_factory=lambda: random.Random(7))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> FaultProxy:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self) -> str | None:
        with self.lock:
            self.requests += 1
            found = self.random.choice(FAULTS) if self.random.random() < self.share else None
            if found:
                self.met[found] += 1
            return found


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultProxy

    def handle_error(self, *_: object) -> None: ...


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        proxy = self.server.proxy
        fault = proxy.fault()
        if fault == "reset":
            self.connection.shutdown(2)
            return
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        behind = http.client.HTTPConnection("127.0.0.1", proxy.port_behind)
        behind.request(self.command, self.path, body=sent or None, headers=dict(self.headers))
        answer = behind.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        behind.close()
        part = body[: len(body) // 2] if fault else body
        with proxy.lock:
            proxy.sent += len(part)
        self.wfile.write(part)
        if fault == "slow":
            time.sleep(1.0)
        if fault:
            self.connection.shutdown(2)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # what a fault hits after the server's answer has happened nevertheless
