"""Several workers on one port, started as a user does."""

from __future__ import annotations

import contextlib
import json
import os
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
import psutil
import pytest

from services.embeddings.edge import keys
from swav_platform.client import Client

pytestmark = pytest.mark.stack

TEXT, KEY = keys.make("me", ["embed", "search", "admin"])


@pytest.fixture(scope="module")
def workers(package: Path, stored: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The parent process, and the address of its two workers."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.write(file, {KEY.id: KEY})
    command = [
        sys.executable,
        "-c",
        "from swav_platform.cli.main import entry; entry()",
        "serve",
        str(package),
        "--embeddings",
        str(stored),
        "--json",
    ]
    command += ["--port", "0", "--workers", "2", "--threads", "1", "--runtime", "torch", "--keys", str(file)]
    process = psutil.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)["url"]
    finally:
        for each in [*process.children(recursive=True), process] if process.is_running() else []:
            each.kill()
        process.wait()


def asking(parent: psutil.Popen) -> list[psutil.Process]:
    """The workers, without multiprocessing's own helper."""
    found = []
    for child in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile; a zombie has no command line
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def counted(url: str) -> int:
    text = httpx.get(f"{url}/metrics", headers={"x-api-key": TEXT}).text
    found = re.search(r'swav_service_requests_total\{code="200",route="/v1/embeddings"\} (\d+)', text)
    return int(found[1]) if found else 0


def test_they_answer_count_and_end_as_one(workers: Any, pictures: list[bytes]) -> None:
    parent, url = workers
    deadline = time.monotonic() + 150
    while len(asking(parent)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    assert httpx.get(f"{url}/v1/models").status_code == 401
    for _ in range(20):  # each on a connection of its own, so that both answer
        with Client(url, key=TEXT, retries=8) as client:
            assert len(client.embeddings(pictures[:1])["items"]) == 1
    assert counted(url) == 20
    for path, method in (("/v1/models/reload", "POST"), ("/v1/items/3", "DELETE"), ("/v1/explorer/exclusions", "POST")):
        answer = httpx.request(method, url + path, headers={"x-api-key": TEXT})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "read_only")

    first, second = asking(parent)
    first.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 150
    while [each.pid for each in asking(parent)] in ([first.pid, second.pid], [second.pid]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for _ in range(4):
        with Client(url, key=TEXT, retries=8) as client:
            client.embeddings(pictures[:1])
    assert counted(url) == 24

    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as stalled:  # its body never comes
        stalled.sendall(
            f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nx-api-key: {TEXT}\r\ncontent-length: 9\r\n"
            "content-type: image/jpeg\r\n\r\nabc".encode()
        )
        time.sleep(0.3)
        os.kill(parent.pid, signal.SIGTERM)
        assert b" 503 " in stalled.recv(100)
    out, err = parent.communicate(timeout=30)
    assert (out, err, parent.returncode) == ("", "", 0)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
