"""HTTP as gateways and browsers speak it."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from services.embeddings.answers import ErrorAnswer
from services.embeddings.app import create_app
from services.embeddings.server import serving
from services.embeddings.settings import ServiceSettings
from swav_platform.cli.main import swav
from swav_platform.errors import UsageError
from tests.services.test_bad_input import JPEG, refused

ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def edge(package: Path) -> Iterator[TestClient]:
    """Below a prefix, and open to pages of one origin."""
    settings = ServiceSettings(model=package, threads=1, root_path="/images/", origins=(ORIGIN,))
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/version", "/metrics", "/v1/models"])
def test_head_is_get_without_a_body(service: TestClient, path: str) -> None:
    got, head = service.get(path), service.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert "HEAD" in refused(service.delete(path), 405, "method_not_allowed")["message"]


def test_methods_are_those_of_all_routes_of_a_path(service: TestClient) -> None:
    response = service.delete("/v1/clusters")
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD, POST"
    assert service.head("/v1/embeddings").headers["allow"] == "POST"


def test_slashes_are_not_redirected(service: TestClient, pictures: list[bytes]) -> None:
    for path in ("/v1/embeddings", "/v1/embeddings/", "/v1/embeddings//"):
        assert service.post(path, content=pictures[0], headers=JPEG, follow_redirects=False).status_code == 200
    refused(service.get("/v1/nothing/", follow_redirects=False), 404, "not_found")
    refused(service.get("/explorer", follow_redirects=False), 404, "not_found")


def test_below_a_prefix(edge: TestClient, pictures: list[bytes]) -> None:
    for prefix in ("", "/images"):  # a gateway may strip it or not
        assert edge.post(f"{prefix}/v1/embeddings", content=pictures[0], headers=JPEG).status_code == 200
        assert edge.get(f"{prefix}/").status_code == 200
        assert 'href="/images/openapi.json"' in edge.get(f"{prefix}/docs/").text
        refused(edge.get(f"{prefix}/v1/nothing"), 404, "not_found")
    assert edge.get("/openapi.json").json()["servers"] == [{"url": "/images"}]
    refused(edge.get("/imagesque/v1/models"), 404, "not_found")


def test_pages_of_the_named_origin_only(edge: TestClient, service: TestClient, pictures: list[bytes]) -> None:
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "content-type, authorization"}
    allowed = edge.options("/v1/embeddings", headers=ask | {"origin": ORIGIN})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    for wrong in (ask | {"origin": "https://evil.example"}, ask | {"origin": ORIGIN, "access-control-request-method": "DELETE"}):
        assert refused(edge.options("/v1/embeddings", headers=wrong), 403, "cross_origin")
    bad = edge.post("/v1/embeddings", content=b"text", headers=JPEG | {"origin": ORIGIN})
    refused(bad, 422, "not_an_image")  # errors too have the header, or the page could not read them
    assert bad.headers["access-control-allow-origin"] == ORIGIN
    other = edge.post("/v1/embeddings", content=pictures[0], headers=JPEG | {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    closed = service.options("/v1/embeddings", headers=ask | {"origin": ORIGIN})
    refused(closed, 405, "method_not_allowed")
    assert "access-control-allow-origin" not in closed.headers


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/models/reload"), ("POST", "/v1/items"), ("DELETE", "/v1/items/9")])
def test_pages_of_other_sites_change_nothing(edge: TestClient, bare: TestClient, method: str, path: str) -> None:
    """A form or an image of any page can send these to a service without keys on the reader's own machine."""
    own = {"host": "127.0.0.1:8000"}
    foreign: list[dict[str, str]] = [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site", "origin": ORIGIN},
    ]
    for headers in foreign:
        refused(bare.request(method, path, headers=own | headers), 403, "cross_origin")
    fine: list[dict[str, str]] = [
        {},
        {"origin": "http://127.0.0.1:8000"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin"},
    ]
    for headers in fine:
        assert bare.request(method, path, headers=own | headers).status_code != 403
    assert edge.request(method, path, headers=own | {"sec-fetch-site": "cross-site", "origin": ORIGIN}).status_code != 403


def test_security_headers_on_everything(service: TestClient, pictures: list[bytes]) -> None:
    answers = [service.get(path) for path in ("/", "/docs", "/v1/models", "/nothing", "/explorer/none.js")]
    answers += [service.post("/v1/embeddings", content=content, headers=JPEG) for content in (pictures[0], b"text")]
    for response in answers:
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"] in ("no-store", "no-cache")


def test_the_error_of_last_resort_has_the_headers_too(edge: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(edge.app, "openapi", broken)
    response = edge.get("/docs", headers={"origin": ORIGIN})
    refused(response, 500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["access-control-allow-origin"] == ORIGIN


def test_docs_need_no_other_host(service: TestClient) -> None:
    page = service.get("/docs")
    assert not re.search(r"<script|<link|src=|https?://(?!testserver)", page.text)
    for path in service.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page.text


def test_idle_connections_stay(package: Path) -> None:
    assert ServiceSettings(model=package).keep_alive >= 75
    with serving(ServiceSettings(model=package, threads=1, keep_alive=1)) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        assert connection.sock.recv(1) == b""  # closed by the service after the second of the setting
        connection.close()


def test_what_is_not_http(package: Path) -> None:
    with serving(ServiceSettings(model=package, threads=1)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400")
    assert ErrorAnswer.model_validate_json(body).error.code == "http_error"


PROGRAM = """
import sys
from pathlib import Path
from services.embeddings.server import serve
from services.embeddings.settings import ServiceSettings
serve(ServiceSettings(Path(sys.argv[1]), threads=1, notice=3), port=0, on_ready=lambda url: print(url, flush=True))
"""


@pytest.mark.stack
def test_drain(package: Path, root: Path, pictures: list[bytes]) -> None:
    """After the signal not ready, yet all is answered; then the port closes."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(package)], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with httpx.Client(base_url=process.stdout.readline().strip(), timeout=10) as client:
            assert client.get("/readyz").status_code == 200
            process.send_signal(signal.SIGTERM)
            while (ready := client.get("/readyz")).status_code == 200:
                time.sleep(0.05)
            ErrorAnswer.model_validate(ready.json())
            assert client.post("/v1/embeddings", content=pictures[0], headers=JPEG).status_code == 200
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "arguments", [["--allow-origin", "app.example"], ["--allow-origin", "https://a/b"], ["--root-path", "images"]]
)
def test_wrong_use(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=arguments[0]):
        CliRunner().invoke(swav, ["serve", "no-such-run", *arguments], catch_exceptions=False)
