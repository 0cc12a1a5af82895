"""README's commands work as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from swav_platform.config import load
from tests.mlflow_server import NOISE

pytestmark = pytest.mark.stack

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """A section of README, from its heading to the next one."""
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README has no section '{title}'"
    return found[1]


def commands(text: str) -> list[str]:
    """Lines of code blocks that call one of our programs, also in blocks that show output."""
    blocks = (block.replace("\\\n", " ") for block in _FENCED.findall(text))
    lines = (line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for block in blocks for line in block.splitlines())
    return [line for line in lines if line.startswith(("swav ", "make ", "curl "))]


def spans(text: str) -> list[str]:
    """Code between single backquotes, also of spans that continue on the next line."""
    paragraphs = re.split(r"\n\s*\n", _FENCED.sub("", text))
    return [span for text in paragraphs for span in re.findall(r"`([^`]+)`", " ".join(text.split()))]


@dataclass(frozen=True)
class Scratch:
    """The folder of a reader who follows README: photos/, the recipe, shards with labels, photo.jpg."""

    folder: Path
    environment: dict[str, str]

    def shell(self, command: str, **environment: str) -> str:
        """Runs a line of README in a shell and returns its stdout."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=900,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        assert NOISE.findall(done.stderr) == [], done.stderr
        return done.stdout

    def losses(self) -> list[float]:
        lines = (self.folder / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory, shards: Path, tiny: list[str]) -> Scratch:
    folder = tmp_path_factory.mktemp("reader")
    recipe = folder / "configs" / "pretrain" / "small.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(yaml.safe_dump(load(None, tiny).model_dump(mode="json")))  # train.steps wins over train.epochs
    tars = sorted(shards.glob("*.tar"))
    for name, tar in zip(("train-000000.tar", "test-000000.tar"), tars, strict=True):
        shutil.copy(tar, folder / name)
    unpack_photos(tars[0], folder / "photos", 60)
    (folder / "photos" / "summer 2019" / "broken.jpg").write_bytes(b"this is no photo")
    shutil.copy(folder / "photos" / "summer 2019" / "day 1" / "IMG 001.jpg", folder / "photo.jpg")
    chosen = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "SWAV_OUT", "SWAV_URL", "SWAV_DEBUG")
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    return Scratch(folder, environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"})


def unpack_photos(shard: Path, folder: Path, count: int) -> None:
    """JPEGs of a shard as the photos of three days, in nested folders with spaces."""
    with tarfile.open(shard) as tar:
        for number, member in enumerate(tar.getmembers()[:count]):
            content = tar.extractfile(member)
            assert content is not None
            path = folder / "summer 2019" / f"day {number % 3}" / f"IMG {number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())


@dataclass(frozen=True)
class Done:
    """Outputs of all commands up to serving, by command. Losses before and after the resume."""

    output: dict[str, str]
    before: list[float]
    after: list[float]


@pytest.fixture(scope="module")
def done(scratch: Scratch) -> Done:
    """Runs them in README's order. The resume comes right after the training, whose last checkpoint is removed."""
    lines = [
        line for title in ("Quick start", "Your own images") for line in commands(section(title)) if line.startswith("swav ")
    ]
    names = ["preview" if "--preview" in line else "resume" if "--resume" in line else line.split()[1] for line in lines]
    planned = dict(zip(names, lines, strict=True))
    assert {"pack", "pretrain", "resume", "preview", "ledger", "embed", "evaluate"} <= set(planned)
    output = {name: scratch.shell(planned.pop(name)) for name in ("pack", "pretrain")}
    before = scratch.losses()
    run = scratch.folder / "runs" / "mine"
    lost = max((run / "checkpoints").iterdir())
    shutil.rmtree(lost)
    (run / "summary.json").unlink()  # the state of a run that was killed before its end
    output["resume"] = scratch.shell(planned.pop("resume"))
    assert lost.is_dir(), "the run repeated its last steps"
    after = scratch.losses()
    return Done(output | {name: scratch.shell(line) for name, line in planned.items()}, before, after)


def test_your_own_images(scratch: Scratch, done: Done) -> None:
    run = scratch.folder / "runs" / "mine"
    assert list((scratch.folder / "shards").glob("*.tar"))
    assert "<svg" in (scratch.folder / "views.html").read_text()
    assert (run / "model" / "model.json").is_file()
    assert (run / "embeddings" / "manifest.json").is_file()
    assert "not_an_image" in done.output["ledger"]
    assert "knn top1" in done.output["evaluate"]


def test_resuming_gives_the_same_losses(done: Done) -> None:
    assert len(done.before) == 8
    assert done.after == done.before, "bit-equal"


def test_mlflow_can_show_the_runs(scratch: Scratch, done: Done) -> None:
    line = next(span for span in spans(section("Your own images")) if span.startswith("mlflow ui"))
    words = shlex.split(line)
    store = words[words.index("--backend-store-uri") + 1]
    assert (scratch.folder / store.removeprefix("sqlite:///")).is_file()
    assert shutil.which("mlflow", path=scratch.environment["PATH"])


@pytest.fixture(scope="module")
def service(scratch: Scratch, done: Done) -> Iterator[str]:
    """URL of README's `swav serve`, on a free port, otherwise as printed."""
    line = next(line for line in commands(section("Serve")) if line.startswith("swav serve "))
    assert "--port 8000" in line
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line.replace('--port 8000', f'--port {port}')}"],
        cwd=scratch.folder,
        env=scratch.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not answers(url):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline, "the service is not ready"
            time.sleep(0.3)
        yield url
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, "Ctrl-C stops it"
    finally:
        process.kill()
        process.communicate()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing")
def test_curl(scratch: Scratch, service: str) -> None:
    lines = [line for line in commands(section("Serve")) if line.startswith("curl ")]
    assert lines
    for line in lines:
        assert "http://127.0.0.1:8000" in line
        answer = json.loads(scratch.shell(line.replace("http://127.0.0.1:8000", service)))
        assert "error" not in answer
        assert "error" not in answer["items"][0]


def test_query_from_a_shell(scratch: Scratch, service: str) -> None:
    lines = [span for span in spans(section("Serve")) if span.startswith("swav query ")]
    assert lines
    for line in lines:
        assert "IMG" in scratch.shell(line, SWAV_URL=service), "neighbours have keys"


def test_routes_exist(service: str) -> None:
    routes = {re.sub(r"{\w+}", "{}", path) for path in ask(f"{service}/openapi.json")["paths"]}
    named = {re.sub(r"{\w+}", "{}", span) for span in spans(section("Serve")) if span.startswith("/")}
    assert named
    assert named <= routes
