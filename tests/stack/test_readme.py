"""README's commands are run as they stand; what README and docs name exists."""

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

import click
import pytest
import yaml

from swav_platform.cli.main import swav
from swav_platform.config import known_keys, load

pytestmark = pytest.mark.stack

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SECTIONS = ("data", "model", "method", "train", "tracking", "run", "views")
_SUFFIXES = (".json", ".jsonl", ".parquet", ".safetensors", ".py", ".yaml", ".tar", ".db")


def section(title: str) -> str:
    """A section of README, from its heading to the next one."""
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README has no section '{title}' any more"
    return found[1]


def commands(text: str) -> list[str]:
    """Lines of its code blocks that call one of our programs, also of those that show output below it."""
    blocks = (block.replace("\\\n", " ") for block in _FENCED.findall(text))
    lines = (line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for block in blocks for line in block.splitlines())
    return [line for line in lines if line.startswith(("swav ", "make ", "curl "))]


def spans(text: str) -> list[str]:
    """Code between single backquotes."""
    return re.findall(r"`([^`\n]+)`", _FENCED.sub("", text))


# ------------------------------------------------------------------------------------ what the pages name


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The verb that the words behind `swav` name, and its arguments."""
    found: click.Command = swav
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        verb = found.get_command(click.Context(found), words[0])
        assert verb is not None, f"there is no verb '{words[0]}'"
        found, words = verb, words[1:]
    return found, words


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--debug", "--help"}


def page_id(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb, argument, option and setting of a whole command is known. Nothing is run."""
    monkeypatch.chdir(ROOT)
    for line in commands(page.read_text(encoding="utf-8")):
        if not line.startswith("swav "):
            continue
        command, words = command_of(shlex.split(line, comments=True)[1:])
        given = command.make_context("swav", words).params  # raises for what the command does not take
        if "config" in given:
            load(given["config"], given["overrides"])


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_verbs_and_options_in_sentences_exist(page: Path) -> None:
    every = {option for verb in swav.list_commands(click.Context(swav)) for option in options_of(command_of([verb])[0])}
    every |= options_of(command_of(["evaluate", "knn"])[0])
    for span in spans(page.read_text(encoding="utf-8")):
        words = [word.partition("=")[0] for word in span.removeprefix(".venv/bin/").split()]
        if words[0] == "swav" and len(words) > 1:
            command, rest = command_of(words[1:])
            unknown = {word for word in rest if word.startswith("--")} - options_of(command)
            assert not unknown, f"{page.name}: `{span}`"
        elif span.startswith("--") and page.name == "README.md":
            assert words[0] in every, f"{page.name}: `{span}`"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_settings_in_sentences_exist(page: Path) -> None:
    known = set(known_keys())
    for span in spans(page.read_text(encoding="utf-8")):
        name = re.match(r"[a-z_]+(\.[a-z_]+)+(?=$|=|:)", span)
        if name and name[0].split(".")[0] in _SECTIONS and not name[0].endswith(_SUFFIXES):
            assert name[0] in known, f"{page.name}: `{span}`"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCED.sub("", page.read_text(encoding="utf-8")))
    relative = [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
    assert [target for target in relative if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_in_sentences_exist(page: Path) -> None:
    """Paths from the project's folder, Python files also from the package's; `file.py: name` has that name in it."""
    for span in spans(page.read_text(encoding="utf-8")):
        path, _, name = span.partition(": ")
        if re.fullmatch(r"(docs|configs|deploy|swav_platform|services|tests|benchmarks)/[\w./-]+", path):
            places = [ROOT / path]
        elif re.fullmatch(r"[a-z_/]+\.py", path):
            places = [ROOT / path, ROOT / "swav_platform" / path]
        else:
            continue
        there = [place for place in places if place.exists()]
        assert there, f"{page.name}: `{span}`"
        if re.fullmatch(r"\w+", name):
            assert re.search(rf"^(def|class) {name}\b|^{name}\b", there[0].read_text(), re.MULTILINE), f"{page.name}: `{span}`"


def test_the_map_is_of_this_house() -> None:
    block = _FENCED.findall(section("Where things are"))[0]
    inside = ROOT
    for line in block.splitlines():
        for word in re.split(r"\s{2,}", line.strip()):
            if word.endswith("/"):
                inside = ROOT / word
                assert inside.is_dir(), word
            elif inside.name == "swav_platform" and (name := re.fullmatch(r"([a-z_]+(?:\.py)?)(?: \(\w+\))?", word)):
                assert (inside / name[1]).exists(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_open(page: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", _FENCED.sub("", page.read_text(encoding="utf-8")))
    assert re.findall(r"\b[A-Z]{3,}_[A-Z]{2,}\b|^[A-Z]{5,}$", text, re.MULTILINE) == []


def test_make_knows_what_is_to_be_tried() -> None:
    lines = [line for line in commands(section("Try it")) if line.startswith("make ")]
    assert {"make demo", "make test"} <= set(lines)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in lines:
        target, *settings = shlex.split(line, comments=True)[1:]
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
        subprocess.run(["make", "-n", target, *settings], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=30)


# ------------------------------------------------------------------------------------ what the commands do


@dataclass(frozen=True)
class Scratch:
    """A folder as a reader has it who follows README: photos/, the recipe, shards with labels, photo.jpg."""

    folder: Path
    environment: dict[str, str]

    def shell(self, command: str, **environment: str) -> str:
        """Runs a line of README by a shell; returns what it said on stdout."""
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
    """All commands of the section on pretraining, by verb: what they said. Losses before and after the resume."""

    said: dict[str, str]
    before: list[float]
    after: list[float]


@pytest.fixture(scope="module")
def done(scratch: Scratch) -> Done:
    """In README's order, but for the resume: it comes right after the training, whose last checkpoint is lost."""
    lines = commands(section("Pretrain on your own images"))
    verbs = ["preview" if "--preview" in line else line.split()[1] for line in lines]
    assert {"pack", "pretrain", "ledger", "embed", "evaluate"} <= set(verbs)
    resume = [line for line in lines if "--resume" in line]
    start = verbs.index("pretrain") + 1
    assert len(resume) == 1
    said = {verb: scratch.shell(line) for verb, line in zip(verbs[:start], lines[:start], strict=True)}
    before = scratch.losses()
    run = scratch.folder / "runs" / "mine"
    lost = max((run / "checkpoints").iterdir())
    shutil.rmtree(lost)
    (run / "summary.json").unlink()  # as if it had been killed before its end
    said["resume"] = scratch.shell(resume[0])
    assert lost.is_dir(), "the steps were made again"
    after = scratch.losses()
    rest = [(verb, line) for verb, line in zip(verbs[start:], lines[start:], strict=True) if line not in resume]
    return Done(said | {verb: scratch.shell(line) for verb, line in rest}, before, after)


def test_pretrain_on_your_own_images(scratch: Scratch, done: Done) -> None:
    run = scratch.folder / "runs" / "mine"
    assert list((scratch.folder / "shards").glob("*.tar"))
    assert "<svg" in (scratch.folder / "views.html").read_text()
    assert (run / "model" / "model.json").is_file()
    assert (run / "embeddings" / "embeddings.parquet").is_file()
    assert "not_an_image" in done.said["ledger"]
    assert "knn top1" in done.said["evaluate"]


def test_resuming_gives_the_same_losses(done: Done) -> None:
    assert len(done.before) == 8
    assert done.after == done.before, "to the last bit"


def test_runs_can_be_looked_at(scratch: Scratch, done: Done) -> None:
    line = next(span for span in spans(section("Pretrain on your own images")) if span.startswith("mlflow ui"))
    words = shlex.split(line)
    store = words[words.index("--backend-store-uri") + 1]
    assert (scratch.folder / store.removeprefix("sqlite:///")).is_file()
    assert shutil.which("mlflow", path=scratch.environment["PATH"])


@pytest.fixture(scope="module")
def service(scratch: Scratch, done: Done) -> Iterator[str]:
    """URL of what README's `swav serve` serves; on a port that is free, all else as it stands."""
    line = next(line for line in commands(section("Ask it")) if line.startswith("swav serve "))
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
            assert time.monotonic() < deadline, "the service did not get ready"
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


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_ask_it(scratch: Scratch, service: str) -> None:
    lines = [line for line in commands(section("Ask it")) if line.startswith("curl ")]
    assert lines
    for line in lines:
        assert "http://127.0.0.1:8000" in line
        answer = json.loads(scratch.shell(line.replace("http://127.0.0.1:8000", service)))
        assert "error" not in answer
        assert "error" not in answer["items"][0]


def test_ask_it_from_a_shell(scratch: Scratch, service: str) -> None:
    lines = [span for span in spans(section("Ask it")) if span.startswith("swav query ")]
    assert lines
    for line in lines:
        assert "IMG" in scratch.shell(line, SWAV_URL=service), "photos are named"


def test_routes_exist(service: str) -> None:
    routes = {re.sub(r"{\w+}", "{}", path) for path in ask(f"{service}/openapi.json")["paths"]}
    told = {re.sub(r"{\w+}", "{}", span) for span in spans(section("Ask it")) if span.startswith("/")}
    assert told
    assert told <= routes
