"""Images by URL: fetched from listed hosts at public addresses only, within limits, for those who may ask."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient

from services.embeddings.app import create_app
from services.embeddings.edge import fetch, keys
from services.embeddings.edge.hosts import listed, public, read_hosts
from services.embeddings.settings import Limits, ServiceSettings
from swav_platform.errors import UsageError
from tests.makers import smooth
from tests.services.test_bad_input import refused

LIMIT = 100_000
IMAGE = smooth(5)
ADDRESSES = {
    "images.test": ["127.0.0.1"],
    "a.below.test": ["127.0.0.1"],
    "inside.test": ["127.0.0.2"],
    "metadata.test": ["169.254.169.254"],
    "mixed.test": ["127.0.0.1", "10.0.0.8"],
    "wrong-name.test": ["127.0.0.1"],  # not in the certificate
    "elsewhere.test": ["127.0.0.1"],  # not in the list
}


class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        self.seen[f"{self.headers['host'].split(':')[0]}{split.path}"] += 1
        more, body, status = {}, IMAGE, 200
        match split.path:
            case "/to":
                status, more = 302, {"Location": parse_qs(split.query)["url"][0]}
            case "/loop":
                status, more = 307, {"Location": "/loop"}
            case "/large":
                body = bytes(LIMIT + 1)
            case "/page":
                body = b"<html>no image</html>"
            case "/gone":
                status = 404
            case "/packed":
                more = {"Content-Encoding": "gzip"}
            case "/endless" | "/slow":
                self._chunks(bytes(1000) if split.path == "/endless" else b"x", 0.0 if split.path == "/endless" else 0.05)
                return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _chunks(self, part: bytes, pause: float) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(1000):
            try:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            except OSError:
                return
            time.sleep(pause)

    def log_message(self, *_: object) -> None:
        pass


def certificate(folder: Path, names: list[str]) -> Path:
    """A key and a certificate that signs itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), critical=False)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "both.pem"
    path.write_bytes(pem + built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ["images.test", "*.below.test", "inside.test", "metadata.test", "mixed.test", "rebinding.test", "elsewhere.test"]
    return certificate(tmp_path_factory.mktemp("tls"), names)


@pytest.fixture(scope="module")
def port(pem: Path) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def names() -> Iterator[list[str]]:
    """Resolves the names of the tests, and takes 127.0.0.1 for a public address. Yields the names that were asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: Any, *more: Any, **options: Any) -> Any:
        if not str(host).endswith(".test"):
            return real(host, *more, **options)
        asked.append(host)
        if host == "rebinding.test":  # public, then private
            return real("127.0.0.1" if asked.count(host) % 2 else "127.0.0.2", *more, **options)
        if host not in ADDRESSES:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [found for address in ADDRESSES[host] for found in real(address, *more, **options)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve)
        patch.setattr(fetch, "public", lambda address: address == "127.0.0.1" or public(address))
        yield asked


@pytest.fixture(scope="module")
def fetching(package: Path, pem: Path, port: int, names: list[str]) -> Iterator[TestClient]:
    hosts = [name for name in ADDRESSES if name not in ("elsewhere.test", "a.below.test")]
    allowed = tuple(
        f"{name}:{port}" for name in (*hosts, "rebinding.test", "unknown.test", ".below.test", "localhost", "127.0.0.1")
    )
    limits = Limits(max_bytes=LIMIT, max_body=250_000, max_items=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(pem))
        app = create_app(ServiceSettings(model=package, threads=1, limits=limits, url_hosts=allowed))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, url: str, path: str = "/v1/embeddings", key: str = "input") -> Any:
    body = json.dumps({key: [url]})  # in ASCII: also half of a surrogate pair
    return client.post(path, content=body, headers={"content-type": "application/json"})


def test_every_dialect(fetching: TestClient, port: int) -> None:
    url = f"https://images.test:{port}/ok"
    direct = fetching.post("/v1/embeddings", content=IMAGE, headers={"content-type": "image/jpeg"}).json()["items"][0][
        "embedding"
    ]
    own = [
        url,
        {"url": url, "name": "a"},
        {"base64": f"https://a.below.test:{port}/ok"},
        {"url": f" HTTPS://IMAGES.test:{port}/ok#x"},
    ]
    items = fetching.post("/v1/embeddings", json={"images": own}).json()["items"]
    assert [item["name"] for item in items] == [None, "a", None, None]
    cohere = {"inputs": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    found = [
        *(item["embedding"] for item in items),
        fetching.post("/v1/embeddings", json={"input": url, "model": "any"}).json()["data"][0]["embedding"],
        fetching.post("/embeddings", json={"input": [url], "modality": "image"}).json()["data"][0]["embedding"],
        fetching.post("/v2/embed", json=cohere).json()["embeddings"]["float"][0],
        fetching.post("/v2/embed", json={"images": [url]}).json()["embeddings"]["float"][0],
    ]
    for vector in found:
        np.testing.assert_allclose(vector, direct, atol=1e-5)
    assert fetching.post("/v1/clusters", json={"images": [url]}).status_code == 200
    redirect = f"https://images.test:{port}/to?url="
    for there in (f"https://a.below.test:{port}/ok", "/ok", "to?url=%2Fok"):
        assert ask(fetching, redirect + quote(there)).status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://images.test:{port}/ok",
        "ftp://images.test:{port}/ok",
        "file:///etc/passwd",
        "s3://bucket/key",
        "https://elsewhere.test:{port}/ok",
        "https://below.test:{port}/ok",
        "https://images.test/ok",  # another port
        "https://images.test:{port}@elsewhere.test:{port}/ok",
        "https://me:secret@images.test:{port}/ok",
        "https://inside.test:{port}/ok",
        "https://metadata.test:{port}/latest/meta-data/",
        "https://mixed.test:{port}/ok",
        "https://[::1]:{port}/ok",
        "https://[::ffff:127.0.0.1]:{port}/ok",
        "https://2130706434:{port}/ok",
        "https://0x7f000002:{port}/ok",
        "https://",
        "https://[",
        "https://images.test:99999/",
        "https://images.test:{port}/" + "a" * 5000,
        "https://images.test:{port}/\0",
        "https://im\u0430ges.test:{port}/ok",
        "https://\ud800.test/",
    ],
)
def test_what_is_not_asked(fetching: TestClient, port: int, url: str) -> None:
    Pages.seen.clear()
    text = url.replace("{port}", str(port))
    error = refused(ask(fetching, text), 422, "url_not_allowed")
    assert error["detail"]["where"] == "input[0]"
    if text.isascii() and text.isprintable() and len(text) < 4000 and text != "https://":
        redirect = f"https://images.test:{port}/to?url={quote(text)}"
        refused(ask(fetching, redirect), 422, "url_not_allowed")
    assert set(Pages.seen) <= {"images.test/to"}


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("images.test:{port}/gone", "url_failed", "404"),
        ("images.test:{port}/loop", "url_failed", "redirected"),
        ("images.test:{port}/packed", "url_failed", "compressed"),
        ("images.test:{port}/page", "not_an_image", ""),
        ("wrong-name.test:{port}/ok", "url_failed", "connection"),
        ("unknown.test:{port}/ok", "url_failed", "address"),
    ],
)
def test_what_does_not_come(fetching: TestClient, port: int, path: str, code: str, words: str) -> None:
    error = refused(ask(fetching, "https://" + path.replace("{port}", str(port))), 422, code)
    assert words in error["message"]


def test_a_name_that_changes_its_address(fetching: TestClient, port: int, names: list[str]) -> None:
    """The address that was checked is the one that is asked; the next connection is checked again."""
    names.clear()
    assert ask(fetching, f"https://rebinding.test:{port}/ok").status_code == 200
    assert names == ["rebinding.test"]
    fetching.portal.call(fetching.app.state.fetcher._pool.aclose)  # type: ignore[union-attr, attr-defined]
    refused(ask(fetching, f"https://rebinding.test:{port}/ok"), 422, "url_not_allowed")


def test_this_machine(fetching: TestClient, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a made-up resolver: its names and addresses are listed, and refused."""
    monkeypatch.setattr(fetch, "public", public)
    for host in ("localhost", "127.0.0.1"):
        refused(ask(fetching, f"https://{host}:{port}/ok"), 422, "url_not_allowed")


def test_too_large(fetching: TestClient, port: int) -> None:
    for path in ("large", "endless"):
        refused(ask(fetching, f"https://images.test:{port}/{path}"), 413, "too_many_bytes")
    images = [{"url": f"https://images.test:{port}/{path}"} for path in ("large", "ok")]
    items = fetching.post("/v1/embeddings", json={"images": images}).json()["items"]
    assert [item.get("error", {}).get("code") for item in items] == ["too_many_bytes", None]
    assert fetching.app.state.service.bodies.held == 0  # type: ignore[attr-defined]


def test_too_slow(fetching: TestClient, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SECONDS", 0.3)
    started = time.monotonic()
    images = [f"https://images.test:{port}/{path}" for path in ("slow", "ok", "slow")]
    error = refused(fetching.post("/v1/embeddings", json={"input": images}), 422, "bad_images")
    assert [item["index"] for item in error["detail"]["items"]] == [0, 2]
    assert time.monotonic() - started < 5


def test_only_those_who_may_and_when_there_is_room(
    package: Path, pem: Path, port: int, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    text, key = keys.make("a", ["embed"], per_minute=2)
    keys.write(tmp_path / "keys.json", {key.id: key})
    settings = ServiceSettings(model=package, threads=1, url_hosts=(f"images.test:{port}",), keys=tmp_path / "keys.json")
    Pages.seen.clear()
    with TestClient(create_app(settings)) as client:
        body = {"input": f"https://images.test:{port}/ok"}
        refused(client.post("/v1/embeddings", json=body), 401, "unauthorized")
        client.headers["authorization"] = f"Bearer {text}"
        admission = client.app.state.service.first.engine._rooms.admission  # type: ignore[attr-defined]
        admission.images += 256
        refused(client.post("/v1/embeddings", json=body), 503, "busy")
        admission.images -= 256
        refused(client.post("/v1/clusters?top=0", json={"images": [body["input"]]}), 422, "invalid_request")
        refused(client.post("/v1/embeddings", json=body), 429, "too_many_requests")
    assert not Pages.seen


def test_off_by_default(service: TestClient, pictures: list[bytes]) -> None:
    for url in ("https://images.test/a.jpg", "http://images.test/a.jpg"):
        assert "--allow-urls" in refused(ask(service, url), 422, "url_not_allowed")["message"]
    images = [{"url": "https://images.test/a.jpg"}, {"base64": ""}]
    codes = [item["error"]["code"] for item in service.post("/v1/embeddings", json={"images": images}).json()["items"]]
    assert codes == ["url_not_allowed", "not_an_image"]


def test_list_of_hosts() -> None:
    hosts = read_hosts(["Images.Example", ".below.example", "*.under.example:8443", "bücher.example"])
    for name, port, allowed in [
        ("images.example", 443, True),
        ("IMAGES.example.", 443, True),
        ("images.example", 8443, False),
        ("a.images.example", 443, False),
        ("a.b.below.example", 443, True),
        ("below.example", 443, False),
        ("xbelow.example", 443, False),
        ("a.under.example", 8443, True),
        ("a.under.example", 443, False),
        ("xn--bcher-kva.example", 443, True),
        ("images.example.evil.example", 443, False),
    ]:
        assert listed(hosts, name, port) == allowed, name
    for wrong in ("", "*", ".", "https://a.example", "a.example/x", "a b", "*.*.example", "a.example:0", "a.example:x", "a..b"):
        with pytest.raises(UsageError, match="--allow-urls"):
            read_hosts([wrong])


def test_public_addresses() -> None:
    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"):
        assert public(address), address
    private = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.1.1"]
    private += ["255.255.255.255", "240.0.0.1", "192.0.0.192", "198.18.0.1", "168.63.129.16"]
    for address in private:
        assert not public(address), address
        number = ipaddress.IPv4Address(address)
        sixes = [f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}", f"::ffff:0:{address}"]
        for inside in [*sixes, str(ipaddress.IPv6Address(0x2002 << 112 | int(number) << 80))]:
            assert not public(inside), inside
    for address in (
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "fec0::1",
        "2001:db8::1",
        "2001::1",
    ):
        assert not public(address), address
