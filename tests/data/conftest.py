"""Tars with known contents, and a web server with configurable faults."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.makers import Files, write_tar


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[[str, Files], str]:
    """(name, files) -> path of a tar with them below tmp_path."""

    return lambda name, files: write_tar(tmp_path / name, files)


@pytest.fixture(autouse=True)
def quiet_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the credentials, caches and endpoints of the user who runs the tests."""
    monkeypatch.setenv("SWAV_CACHE", str(tmp_path / "_cache"))
    monkeypatch.setenv("SWAV_STORAGE_TIMEOUT", "1")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class WebServer:
    """Files by path. faults: (path, number of the request for it) -> None, "503", "reset", "cut" or "slow"."""

    files: dict[str, bytes]
    url: str = ""
    ranges: bool = True
    etags: bool = True
    faults: Callable[[str, int], str | None] = lambda path, number: None
    status: dict[str, int] = field(default_factory=dict)  # error responses by path
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    sent: int = 0  # bytes of bodies
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        web = self.server.web
        asked = self.headers.get("Range")
        with web.lock:
            number = sum(path == self.path for _, path, _ in web.requests)
            web.requests.append((self.command, self.path, asked))
        fault = web.faults(self.path, number)
        content = web.files.get(self.path.partition("?")[0].lstrip("/"))
        status = web.status.get(self.path.lstrip("/"), 503 if fault == "503" else 404 if content is None else 200)
        if fault == "reset":
            self.connection.shutdown(2)
            return
        if status != 200 or content is None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, end = 0, len(content)
        if asked and web.ranges and (match := re.fullmatch(r"bytes=(\d+)-(\d+)", asked)):
            first, end = int(match[1]), min(int(match[2]) + 1, len(content))
            if first >= end:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - first))
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        if web.etags:
            self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.end_headers()
        if not body:
            return
        data = content[first:end]
        broken = fault in ("cut", "slow")
        with web.lock:
            web.sent += len(data) // 2 if broken else len(data)
        self.wfile.write(data[: len(data) // 2] if broken else data)
        if fault == "slow":
            time.sleep(1.5)
        if broken:
            self.connection.shutdown(2)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    web: WebServer

    def handle_error(self, *_: object) -> None: ...  # clients may disconnect at any time


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.web = WebServer({}, f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.web
    server.shutdown()
    server.server_close()
