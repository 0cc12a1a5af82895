"""Tokens and redirects of web servers."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.data.samples import read_samples
from swav_platform.data.storage import redirects
from swav_platform.errors import UsageError, UserError
from tests.makers import tar_bytes


class Hub(http.server.ThreadingHTTPServer):
    """`/o/n/resolve/main/x.tar` needs a token and leads to a signed address on another host, which must not see the token."""

    daemon_threads = True
    tar = tar_bytes([(f"{n}.jpg", b"%d" % n * 3000) for n in range(30)])
    needs: str | None = "Bearer t0ken"
    life = 600
    head = True
    seen: list[tuple[str, str, str | None]]
    tokens: list[tuple[str, str | None]]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        given = self.headers.get("Authorization")
        hub.seen.append((self.command, self.path.partition("?")[0], given))
        hub.tokens.append((self.path, self.headers.get("X-Token")))
        if self.command == "HEAD" and not hub.head:
            self._head(403 if "?" in self.path else 405, 0, {})
        elif self.path.startswith(("/cdn/", "/direct")):
            given = None if self.path == "/direct.tar" else given
            expires = int(self.path.rpartition("Expires=")[2] or 2**40) if "?" in self.path else 2**40
            body, status = (hub.tar, 200) if given is None and time.time() < expires else (b"", 403)
            if status == 200 and (asked := self.headers.get("Range")):
                first, last = map(int, asked.removeprefix("bytes=").split("-"))
                body, status = hub.tar[first : last + 1], 206
                self._head(status, len(body), {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(hub.tar)}"})
            else:
                self._head(status, len(body), {})
            if self.command == "GET":
                self.wfile.write(body)
        elif hub.needs is not None and given != hub.needs:
            self._head(401, 0, {})
        else:
            there = f"http://127.0.0.1:{hub.server_port}/cdn/x.tar?Expires={int(time.time()) + hub.life}"
            self._head(302, 0, {"Location": there})

    def _head(self, status: int, length: int, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), "ETag": '"e"', **more}.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "SWAV_HTTP_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(redirects, "_targets", {})
    monkeypatch.setattr(redirects, "_direct", set())
    server = Hub(("127.0.0.1", 0), _Handler)
    server.seen, server.tokens = [], []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(hub: Hub) -> str:
    return f"http://localhost:{hub.server_port}/o/n/resolve/main/x.tar"


def read(hub: Hub, out: Path, url: str) -> int:
    build_index(expand([url]), out)
    index = Index.open(out)
    return sum(isinstance(data, bytes) for data in read_samples(index.lines(range(index.samples))).values())


@pytest.mark.parametrize("way", ["hub", "headers", "port", "netrc"])
def test_a_token_reaches_its_own_host_only(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    url = address(hub)
    if way == "hub":
        monkeypatch.setenv("HF_ENDPOINT", f"http://localhost:{hub.server_port}")
        monkeypatch.setenv("HF_TOKEN", "t0ken")
        url = "hf://models/o/n/x.tar"
    elif way == "netrc":
        (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
        hub.needs = "Basic bWU6c2VjcmV0"
    else:
        host = "localhost" if way == "headers" else f"localhost:{hub.server_port}"
        monkeypatch.setenv("SWAV_HTTP_HEADERS", json.dumps({host: {"Authorization": "Bearer t0ken"}}))
    assert read(hub, tmp_path / "index", url) == 30
    assert {given for _, path, given in hub.seen if path.startswith("/cdn/")} == {None}


@pytest.mark.parametrize("without_head", [False, True])
def test_headers_of_any_name_stay_with_their_host(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_head: bool
) -> None:
    """Also where the server does not answer HEAD, and after a file of that host that it served itself."""
    given = {"Authorization": "Bearer t0ken", "X-Token": "t0ken", "Cookie": "t0ken"}
    monkeypatch.setenv("SWAV_HTTP_HEADERS", json.dumps({"localhost": given}))
    hub.head = not without_head
    assert read(hub, tmp_path / "direct", f"http://localhost:{hub.server_port}/direct.tar") == 30
    assert read(hub, tmp_path / "index", address(hub)) == 30
    assert {token for path, token in hub.tokens if not path.startswith("/cdn/")} == {"t0ken"}
    assert {token for path, token in hub.tokens if path.startswith("/cdn/")} == {None}


def test_a_signed_address_that_allows_get_only(hub: Hub, tmp_path: Path) -> None:
    hub.head, hub.needs = False, None
    end = int(time.time()) + 600
    assert read(hub, tmp_path / "index", f"http://127.0.0.1:{hub.server_port}/cdn/x.tar?Expires={end}") == 30
    with pytest.raises(UserError, match="403"):
        read(hub, tmp_path / "late", f"http://127.0.0.1:{hub.server_port}/cdn/x.tar?Expires=1")


def test_headers_do_not_leave_https(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_HTTP_HEADERS", json.dumps({"h": {"Authorization": "Bearer t0ken"}}))
    assert redirects.headers_at("https://h/b", "https://h/a") == {"Authorization": "Bearer t0ken"}
    assert redirects.headers_at("http://h/b", "http://h/a") == {"Authorization": "Bearer t0ken"}
    assert redirects.headers_at("http://h/b", "https://h/a") == {}


def test_headers_are_not_sent_where_a_redirect_may_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise httpx.ConnectTimeout("timed out")

    monkeypatch.setattr(httpx, "head", away)
    monkeypatch.setenv("SWAV_HTTP_HEADERS", json.dumps({"h": {"X-Token": "t0ken"}, "i": {"Authorization": "t0ken"}}))
    with pytest.raises(OSError, match="timed out"):
        redirects.target("http://h/x.tar")
    assert redirects.target("http://i/x.tar") == "http://i/x.tar", "the client keeps this header on its host"


def test_a_redirect_is_asked_for_once(hub: Hub, tmp_path: Path) -> None:
    hub.needs = None
    assert read(hub, tmp_path / "index", address(hub)) == 30
    assert sum(path.startswith("/o/") for _, path, _ in hub.seen) == 1
    hub.life = 0
    redirects.forget(address(hub))
    seen = len(hub.seen)
    with pytest.raises(UserError):
        read(hub, tmp_path / "other", address(hub))
    hub.life = 600
    assert read(hub, tmp_path / "other", address(hub)) == 30
    assert len(hub.seen) > seen


def test_a_refusal_names_the_ways_to_give_a_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"HF_TOKEN.*SWAV_HTTP_HEADERS.*netrc") as raised:
        build_index([address(hub)], tmp_path / "index")
    assert "AWS" not in str(raised.value)
    monkeypatch.setenv("SWAV_HTTP_HEADERS", "Authorization: Bearer x")
    with pytest.raises(UsageError, match="headers by host as JSON"):
        build_index([address(hub)], tmp_path / "index")
