"""Output of all commands: progress and notices on stderr, results on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from swav_platform.errors import UsageError

stderr = Console(stderr=True)

_UNCUT = 1000
"""Width in columns where stdout is a file or a pipe, so that no line is wrapped."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")


def examples(*lines: str) -> str:
    """The epilog of a command's --help; \\b keeps Click from rewrapping the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
        disable=not stderr.is_terminal,
    )


def show(table: Table) -> None:
    """Prints a table to stdout, as wide as the terminal; in files and pipes without wrapping."""
    stdout = Console()
    if not stdout.is_terminal:
        stdout.width = _UNCUT
    stdout.print(table)


def answer(result: Mapping[str, Any], as_json: bool) -> None:
    """Prints a result as JSON, or as a table of names and values."""
    if as_json:
        click.echo(json.dumps(result, default=str))
        return
    table = Table(show_header=False, box=None)
    for key, value in result.items():
        add_row(table, key.replace("_", " "), readable(value))
    show(table)


def add_row(table: Table, *cells: str) -> None:
    """Adds a row of plain text: Rich would interpret [brackets] in file names as markup."""
    table.add_row(*(Text(cell) for cell in cells))


def say(text: str) -> None:
    """Prints a line to stderr without interpreting markup."""
    stderr.print(Text(text), soft_wrap=True)


def page(option: str, path: str | Path) -> Path:
    """Path of an option's HTML page. Raises UsageError for other suffixes, so that a typo can't overwrite a photo or a shard."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{option} {path}: the file name must end in .html.")
    return Path(path).expanduser()


def readable(value: Any) -> str:
    """Formats a value for people."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value) or "none"
    return "-" if value is None else str(value)
