"""Clients that stall, trickle or go away cost nobody else anything."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.embeddings import body
from services.embeddings.server import serving
from services.embeddings.settings import Limits, ServiceSettings
from swav_platform.models.inference import InferenceModel

JPEG = {"content-type": "image/jpeg"}
HELD = 400_000


@pytest.fixture(scope="module")
def url(package: Path) -> Iterator[str]:
    with serving(ServiceSettings(model=package, threads=1, limits=Limits(max_held=HELD))) as url:
        yield url


def upload(url: str, announced: int, sent: bytes) -> socket.socket:
    """A connection with the beginning of a body."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {announced}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def answer(connection: socket.socket) -> tuple[int, str]:
    with connection, connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        while file.readline().strip():
            pass
        return status, str(json.loads(file.readline())["error"]["code"])


def test_a_stalled_body_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "STALL", 0.2)
    assert answer(upload(url, 100_000, b"x" * 1000)) == (408, "too_slow")


def test_a_trickle_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "GRACE", 0.3)
    connection = upload(url, 100_000, b"x")

    def trickle() -> None:
        for _ in range(200):
            try:
                connection.sendall(b"x")
            except OSError:
                return
            time.sleep(0.02)

    thread = threading.Thread(target=trickle)
    thread.start()
    assert answer(connection) == (408, "too_slow")
    thread.join()


def test_stalled_bodies_make_room_for_others(url: str, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "IDLE", 0.0)
    stalled = [upload(url, HELD, b"x" * 120_000) for _ in range(6)]  # more than the memory for bodies
    padded = pictures[0] + bytes(200_000)
    for _ in range(3):
        assert httpx.post(f"{url}/v1/embeddings", content=padded, headers=JPEG, timeout=20).status_code == 200
    codes = set()
    for connection in stalled:
        connection.settimeout(1)
        try:
            codes.add(answer(connection))
        except TimeoutError:  # it still has its memory
            connection.close()
    assert codes <= {(408, "too_slow"), (503, "busy")}
    assert (408, "too_slow") in codes


def test_images_of_clients_that_went_away_are_not_encoded(
    package: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release, encoded = threading.Event(), threading.Event(), []
    encode = InferenceModel.encode

    def held(self: InferenceModel, images: object) -> object:
        if entered.is_set() or len(images) == 1:  # type: ignore[arg-type]
            entered.set()
            release.wait(20)
        encoded.append(len(images))  # type: ignore[arg-type]
        return encode(self, images)  # type: ignore[arg-type]

    with serving(ServiceSettings(model=package, threads=1, max_batch=8)) as url:
        monkeypatch.setattr(InferenceModel, "encode", held)
        first = threading.Thread(target=lambda: httpx.post(f"{url}/v1/embeddings", content=pictures[0], headers=JPEG, timeout=30))
        first.start()
        assert entered.wait(20)
        for number in range(1, 5):  # queued behind the first, and then gone
            upload(url, len(pictures[number]), pictures[number]).close()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            pending = [
                line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith("swav_service_pending_images ")
            ]
            if float(pending[0].split()[1]) == 1:
                break
            time.sleep(0.02)
        release.set()
        first.join()
        last = httpx.post(f"{url}/v1/embeddings", content=pictures[9], headers=JPEG, timeout=30)
        assert last.status_code == 200
    assert sum(encoded) == 2
