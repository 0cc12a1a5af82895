"""docs/http.md and the commands of docs/serve.md match the service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from services.embeddings.server import serving
from services.embeddings.settings import Limits, ServiceSettings
from swav_platform.data.ledger.outcomes import Outcome


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "http.md").read_text(encoding="utf-8")


def test_routes(page: str, service: TestClient) -> None:
    table = page.partition("## Routes")[2].partition("##")[0]
    told = set(re.findall(r"`(GET|POST|DELETE) (/\S+)`", table))
    paths = service.get("/openapi.json").json()["paths"]
    assert told == {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_codes(page: str, root: Path) -> None:
    table = page.partition("## Errors")[2].partition("## Metrics")[0]
    told = {code for line in re.findall(r"^\| (`.*?) \|", table, re.M) for code in re.findall(r"`(\w+)`", line)}
    source = "".join(path.read_text() for path in (root / "services").rglob("*.py"))
    used = set(re.findall(r'(?:ServiceError\(\s*\d+,\s*|Fault\(|_Refused\()"(\w+)"', source))
    words = {outcome.word for outcome in Outcome}
    assert told - words == used - words


def test_metrics(page: str, service: TestClient) -> None:
    service.post("/v1/embeddings", content=b"text", headers={"content-type": "image/jpeg"})
    told = set(re.findall(r"`(swav_service_\w+)`", page))
    families = set(re.findall(r"^# TYPE (swav_\w+)", service.get("/metrics").text, re.M))
    assert told == {name for name in families if not name.endswith("_created")}


def test_limits(page: str) -> None:
    table = page.partition("## Limits")[2].partition("## Errors")[0]
    numbers = [int(number) for number in re.findall(r"^\| [^|]+ \| (\d+)", table, re.M)]
    limits, mib = Limits(), 2**20
    assert numbers == [
        limits.max_bytes // mib,
        limits.max_body // mib,
        limits.max_items,
        limits.max_pixels // 10**6,
        limits.max_pending,
        limits.max_held // mib,
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_commands(root: Path, package: Path, stored: Path, draw: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(draw(1))
    (tmp_path / "other.png").write_bytes(draw(2, kind="PNG"))
    page = (root / "docs" / "serve.md").read_text(encoding="utf-8")
    commands = re.findall(r"```sh\n(.*?)```", page, re.S)
    assert commands
    with serving(ServiceSettings(model=package, embeddings=stored, threads=1)) as address:
        for command in commands:
            own = command.replace("http://127.0.0.1:8000", address)
            done = subprocess.run(["sh", "-c", own], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True)
            answer = json.loads(done.stdout)
            assert "model" in answer, done.stdout
            assert not any("error" in item for item in answer.get("items", []))
