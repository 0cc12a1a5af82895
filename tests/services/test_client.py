"""The client against a real server on a free port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.embeddings.server import serving
from services.embeddings.settings import Limits, ServiceSettings
from swav_platform.client import AsyncClient, Client
from swav_platform.errors import UserError

pytestmark = pytest.mark.stack  # starts processes


@pytest.fixture(scope="module")
def address(package: Path, stored: Path) -> Iterator[str]:
    limits = Limits(max_bytes=300_000, max_items=4, max_body=2_000_000)
    with serving(ServiceSettings(model=package, embeddings=stored, limits=limits, threads=1)) as url:
        yield url


def test_every_question(address: str, pictures: list[bytes], truth: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "a photo.JPG"
    path.write_bytes(pictures[6])
    with Client(address) as client:
        assert client.health() == {"status": "ready"}
        answer = client.embeddings([path, pictures[7], str(path)])
        assert [item["name"] for item in answer["items"]] == ["a photo.JPG", "image-1", "a photo.JPG"]
        np.testing.assert_allclose([item["embedding"] for item in answer["items"]], truth[0][[6, 7, 6]], atol=1e-5)
        assert client.embeddings([path], kind="projection")["dim"] == truth[1].shape[1]
        assert len(client.clusters([path], top=2)["items"][0]["clusters"]) == 2
        assert client.neighbors([path], k=3)["items"][0]["neighbors"][0]["sample"] == 6
        assert client.neighbors_of("0006", k=2)["item"]["sample"] == 6
        assert client.neighbors_of("0007", k=2, shard="b.tar")["item"]["sample"] == 20
        assert client.cluster_sizes(limit=2)["total"] == 12
        assert client.cluster(0)["cluster"] == 0
        assert client.models()["models"][0]["samples"] == 40


def test_names_that_are_not_text(address: str, pictures: list[bytes], tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xff.jpg"))
    path.write_bytes(pictures[1])
    with Client(address) as client:
        assert client.embeddings([path])["items"][0]["name"] == "caf\\xe9 \\xff.jpg"


def test_errors_are_paragraphs(address: str, pictures: list[bytes], tmp_path: Path) -> None:
    with Client(address + "/") as client:
        with pytest.raises(UserError, match=r"no_such_cluster, HTTP 404"):
            client.cluster(99)
        with pytest.raises(UserError, match="not_an_image"):
            client.embeddings([b"text"])
        with pytest.raises(UserError, match=r"absent\.jpg"):
            client.embeddings([tmp_path / "absent.jpg"])
        with pytest.raises(UserError, match="empty"):
            client.embeddings([])


def test_long_lists_are_several_requests(address: str, pictures: list[bytes], truth: tuple[np.ndarray, np.ndarray]) -> None:
    """The service takes 4 images and 300,000 bytes of each: the client finds that out."""
    images = [*pictures[:9], b"text", b"x" * 400_000, pictures[9]]
    with Client(address) as client:
        items = client.embeddings(images)["items"]
        streamed = list(client.stream(images, batch=3))
    assert [item["index"] for item in items] == list(range(12))
    assert [item["error"]["code"] for item in items if "error" in item] == ["not_an_image", "too_many_bytes"]
    assert streamed == [{**item, "name": kept["name"]} for item, kept in zip(items, streamed, strict=True)]
    np.testing.assert_allclose([item["embedding"] for item in items if "embedding" in item], truth[0][:10], atol=1e-5)


def test_a_folder(address: str, pictures: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, image in {"deep/b.png": pictures[1], "a.JPG": pictures[0], "notes.txt": b"text"}.items():
        (tmp_path / name).write_bytes(image)

    async def asked() -> list[Any]:
        async with AsyncClient(address) as client:
            assert (await client.embeddings(pictures[:5], model="tiny"))["model"]["name"] == "tiny"
            assert (await client.models())["models"][0]["samples"] == 40
            with pytest.raises(UserError, match="not_an_image"):
                await client.clusters([b"text"])
            return [item async for item in client.stream(tmp_path)]

    with Client(address) as client:
        items = list(client.stream(tmp_path))
        assert [item["name"] for item in items] == ["a.JPG", "b.png"]
        assert asyncio.run(asked()) == items
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="no images"):
            next(client.stream(tmp_path / "empty"))


def test_a_body_far_too_large_gets_its_answer(address: str) -> None:
    with Client(address) as client, pytest.raises(UserError, match="too_many_bytes"):
        client.embeddings([b"x" * 20_000_000])


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Client(f"http://127.0.0.1:{port}", timeout=0.2) as client, pytest.raises(UserError, match="did not respond in time"):
            client.health()  # listens, never answers
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(UserError, match=f"{port}.*swav serve"):
        client.health()
    for wrong in ("nonsense", "http://127.0.0.1:99999999", "http://[::1"):
        with pytest.raises(UserError, match=r"swav serve|127\.0\.0\.1:8000"), Client(wrong) as client:
            client.health()


PROGRAM = """
import sys
from pathlib import Path
from services.embeddings.server import serve
from services.embeddings.settings import ServiceSettings
serve(ServiceSettings(Path(sys.argv[1]), threads=1), port=0, on_ready=lambda url: print(url, flush=True))
print('ended')
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_order(package: Path, root: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, str(package)]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with Client(process.stdout.readline().strip()) as client:
        assert client.health() == {"status": "ready"}
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("ended\n", "", 0)
