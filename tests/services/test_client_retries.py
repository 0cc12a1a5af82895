"""The client asks again when it is told to, sends its key, and streams any number of images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from services.embeddings.edge import keys
from services.embeddings.server import serving
from services.embeddings.settings import ServiceSettings
from swav_platform.client import Client
from swav_platform.client.exchange import pause
from swav_platform.errors import UserError


class Busy(BaseHTTPRequestHandler):
    """Answers 503 twice, then 200; a service that is busy for exactly so long cannot be had otherwise."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("x-api-key", ""))
        busy = len(self.seen) <= 2
        body = b'{"error": {"code": "busy", "message": "Busy.", "detail": {}}}' if busy else b"{}"
        self.send_response(503 if busy else 200)
        self.send_header("content-length", str(len(body)))
        self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy() -> Iterator[str]:
    Busy.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_busy_service_is_asked_again(busy: str) -> None:
    with Client(busy, key="secret") as client:
        assert client.models() == {}
    assert Busy.seen == ["secret"] * 3


def test_not_for_ever(busy: str) -> None:
    with Client(busy, retries=1) as client, pytest.raises(UserError, match="busy, HTTP 503"):
        client.models()
    assert len(Busy.seen) == 2


class Lost(BaseHTTPRequestHandler):
    """Loses the first requests: closes the connection, then says 500 as a proxy does whose process behind it has ended."""

    seen: list[str]

    def do_POST(self) -> None:
        self.seen.append(self.command)
        self.rfile.read(int(self.headers["content-length"]))
        if len(self.seen) == 1:
            self.close_connection = True
            return
        status, body = (500, b"Internal Server Error") if len(self.seen) == 2 else (200, b'{"model": {}, "items": []}')
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_what_is_lost_is_sent_again_unless_it_changes_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swav_platform.client.exchange.random.uniform", lambda *_: 0.01)
    Lost.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Lost) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            assert client.embeddings([b"image"])["items"] == []
            assert len(Lost.seen) == 3
            Lost.seen.clear()
            with pytest.raises(UserError, match="Cannot reach"):
                client.add_items([("key", b"image")])
            assert len(Lost.seen) == 1
        server.shutdown()


def test_pauses() -> None:
    def told(value: str) -> httpx.Response:
        return httpx.Response(503, headers={b"retry-after": value.encode()})

    assert pause(told("7"), 0) == 7
    assert pause(told("9999"), 0) == 60
    assert pause(told(formatdate(0, usegmt=True)), 0) == 0
    assert 0.3 < pause(told("soon"), 0) < 0.7
    assert 0.3 < pause(told("²"), 0) < 0.7  # a digit to str, no number to float
    assert 3 < pause(httpx.Response(503), 3) < 5


def test_thumbnails_are_left_to_the_key(package: Path, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, key = keys.make("a", ["search"])
    monkeypatch.setenv("SWAV_API_KEYS", keys.dumps({key.id: key}))
    with serving(ServiceSettings(model=package, embeddings=stored, threads=1)) as url, Client(url, key=text) as client:
        assert client.neighbors_of("0003", k=2)["neighbors"][0]["thumbnail"] is None
        with pytest.raises(UserError, match="forbidden"):
            client.neighbors_of("0003", thumbnails=True)


def test_stream_with_a_key(package: Path, pictures: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, key = keys.make("a", ["embed"])
    keys.write(tmp_path / "keys.json", {key.id: key})
    images = [*pictures[:2], b"text", pictures[3], b"text"]
    with serving(ServiceSettings(model=package, threads=1, keys=tmp_path / "keys.json")) as url:
        with Client(url) as client, pytest.raises(UserError, match="unauthorized"):
            client.models()
        monkeypatch.setenv("SWAV_API_KEY", text)
        with Client(url) as client:
            items = list(client.stream(iter(images), batch=2))
            whole = client.embeddings(pictures[:1])["items"][0]["embedding"]
    assert [item["index"] for item in items] == [0, 1, 2, 3, 4]
    assert ["error" in item for item in items] == [False, False, True, False, True]
    assert items[0]["embedding"] == pytest.approx(whole, abs=1e-5)
