"""Documentation lint: what README and docs name exists, links resolve, and the language is plain. Nothing is run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from swav_platform.cli.main import swav
from swav_platform.config import known_keys, load

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ("settings.md",)  # its own test compares it with the schema

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_written_page = pytest.mark.parametrize("page", [p for p in PAGES if p.name not in GENERATED], ids=lambda page: page.name)

_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SECTIONS = ("data", "model", "method", "train", "tracking", "run", "views")
_SUFFIXES = (".json", ".jsonl", ".parquet", ".safetensors", ".py", ".yaml", ".tar", ".db", ".md")
_NOT_PLAIN = re.compile(r"\b(anew|whoever|shall|stand-ins?|in vain|begun|told of|of whom|in whose|too dear)\b", re.IGNORECASE)


def commands(text: str) -> list[str]:
    """Lines of code blocks that call one of our programs, without prompt and folder."""
    blocks = (block.replace("\\\n", " ") for block in _FENCED.findall(text))
    lines = (line.strip().removeprefix("$ ").removeprefix(".venv/bin/") for block in blocks for line in block.splitlines())
    return [line for line in lines if line.startswith(("swav ", "make "))]


def spans(text: str) -> list[str]:
    """Code between single backquotes, also of spans that continue on the next line."""
    paragraphs = re.split(r"\n\s*\n", _FENCED.sub("", text))
    return [span for text in paragraphs for span in re.findall(r"`([^`]+)`", " ".join(text.split()))]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words after `swav` name, and its arguments."""
    found: click.Command = swav
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        command = found.get_command(click.Context(found), words[0])
        assert command is not None, f"unknown command '{words[0]}'"
        found, words = command, words[1:]
    return found, words


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--debug", "--help"}


@every_page
def test_commands_are_valid(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command, argument, option and setting of a whole command line exists."""
    monkeypatch.chdir(ROOT)
    for line in commands(page.read_text(encoding="utf-8")):
        if not line.startswith("swav ") or "…" in line:
            continue
        command, words = command_of(shlex.split(line, comments=True)[1:])
        if isinstance(command, click.Group):
            continue
        given = command.make_context("swav", words).params
        if given.get("config"):
            load(given["config"], given["overrides"])


@every_page
def test_commands_and_options_in_sentences_exist(page: Path) -> None:
    every = {option for name in swav.list_commands(click.Context(swav)) for option in options_of(command_of([name])[0])}
    every |= options_of(command_of(["evaluate", "knn"])[0])
    for span in spans(page.read_text(encoding="utf-8")):
        words = [word.partition("=")[0] for word in span.removeprefix(".venv/bin/").split()]
        if words[:1] == ["swav"] and len(words) > 1:
            command, rest = command_of(words[1:])
            unknown = {word for word in rest if word.startswith("--")} - options_of(command)
            assert not unknown, f"{page.name}: `{span}`"
        elif span.startswith("--") and page == README:
            assert words[0] in every, f"{page.name}: `{span}`"


@every_page
def test_settings_in_sentences_exist(page: Path) -> None:
    known = set(known_keys())
    for span in spans(page.read_text(encoding="utf-8")):
        name = re.match(r"[a-z_]+(\.[a-z_]+)+(?=$|=|:)", span)
        if name and name[0].split(".")[0] in _SECTIONS and not name[0].endswith(_SUFFIXES):
            assert name[0] in known, f"{page.name}: `{span}`"


@every_page
def test_links_resolve(page: Path) -> None:
    """Files of relative links exist. The site's build checks anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCED.sub("", page.read_text(encoding="utf-8")))
    relative = [target.partition("#")[0] for target in targets if "://" not in target and not target.startswith("#")]
    generated = {"api.md"}
    assert [target for target in relative if target not in generated and not (page.parent / target).exists()] == []


@every_page
def test_files_in_sentences_exist(page: Path) -> None:
    """Paths start at the project's folder, or at the package's; `file.py: name` has that name in it."""
    text = page.read_text(encoding="utf-8")
    in_tables = (word for block in _FENCED.findall(text) for word in re.findall(r"(?<!\S)[a-z_]+/[a-z_/]+\.py\b", block))
    for span in (*spans(text), *in_tables):
        path, _, name = span.partition(": ")
        if re.fullmatch(r"(docs|configs|deploy|swav_platform|services|tests|benchmarks)/[\w./-]+", path):
            places = [ROOT / path]
        elif re.fullmatch(r"(\w+/)+(\w+\.py)?", path) and (ROOT / "swav_platform" / path.split("/")[0]).is_dir():
            places = [ROOT / "swav_platform" / path]
        else:
            continue
        there = [place for place in places if place.exists()]
        assert there, f"{page.name}: `{span}`"
        if re.fullmatch(r"\w+", name):
            assert re.search(rf"^(def|class) {name}\b|^{name}\b", there[0].read_text(), re.MULTILINE), f"{page.name}: `{span}`"


def test_map_of_the_tree_is_complete() -> None:
    """README's map names every package, and nothing that does not exist."""
    block = next(block for block in _FENCED.findall(README.read_text(encoding="utf-8")) if block.startswith("swav_platform/"))
    inside, named = ROOT, set()
    for line in block.splitlines():
        folder, name = re.match(r"(?:(\w+)/)? *([\w.]+)", line).groups()  # type: ignore[union-attr]
        inside = ROOT / folder if folder else inside
        assert (inside / name).exists(), line
        named.add(inside / name)
    packages = {path for path in (ROOT / "swav_platform").iterdir() if (path / "__init__.py").exists()}
    assert packages - named == set()


@every_written_page
def test_no_placeholder_is_left(page: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", _FENCED.sub("", page.read_text(encoding="utf-8")))
    assert re.findall(r"\b[A-Z]{3,}_[A-Z]{2,}\b|^[A-Z]{5,}$|@@|TODO", text, re.MULTILINE) == []


def _paragraphs(text: str) -> list[str]:
    """Prose as single lines: no code, tables or headings."""
    kept = ["" if line.startswith(("|", "#")) else line for line in _FENCED.sub("", text).splitlines()]
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", "\n".join(kept)) if paragraph.strip()]


@every_written_page
def test_sentences_are_short_and_plain(page: Path) -> None:
    prose = [re.sub(r"`[^`]*`", "X", text) for text in _paragraphs(page.read_text(encoding="utf-8"))]
    sentences = [sentence for text in prose for sentence in re.split(r"(?<=[.!?:;])\s+", text)]
    assert [sentence for sentence in sentences if len(sentence.split()) > 32] == []
    assert [found[0] for text in prose for found in _NOT_PLAIN.finditer(text)] == []


def test_documentation_is_short() -> None:
    """Words outside of tables and code. To add a page, shorten another one."""
    assert sum(len(text.split()) for page in PAGES for text in _paragraphs(page.read_text(encoding="utf-8"))) <= 11_500


@every_written_page
def test_lines_fit(page: Path) -> None:
    lines = _FENCED.sub("", page.read_text(encoding="utf-8")).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|") and "](" not in line] == []


def test_navigation_has_every_page() -> None:
    def files(entry: object) -> list[str]:
        if isinstance(entry, dict):
            return [name for value in entry.values() for name in files(value)]
        return [name for item in entry for name in files(item)] if isinstance(entry, list) else [str(entry)]

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    written = {page.name for page in PAGES if page != README}
    assert sorted(files(navigation)) == sorted(written | {"index.md", "api.md"})


def test_make_targets_exist() -> None:
    lines = [line for line in commands(README.read_text(encoding="utf-8")) if line.startswith("make ")]
    assert {"make setup", "make demo", "make test"} <= set(lines)
    for line in lines:
        target, *settings = shlex.split(line, comments=True)[1:]
        subprocess.run(["make", "-n", target, *settings], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=30)


@every_page
def test_python_examples_compile(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        compile(block, page.name, "exec")
