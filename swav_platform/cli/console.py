"""What verbs share to talk with people and machines: progress on stderr, answers on stdout."""

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
"""Columns of what goes into a file or a pipe: what reads it wants whole lines."""

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout.")


def examples(*lines: str) -> str:
    """The epilog of a verb's --help; \\b keeps Click from filling the lines."""
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
    """A table on stdout: as wide as the terminal, in files and pipes with whole lines."""
    stdout = Console()
    if not stdout.is_terminal:
        stdout.width = _UNCUT
    stdout.print(table)


def answer(result: Mapping[str, Any], as_json: bool) -> None:
    """A result as JSON, or as a table of names and values."""
    if as_json:
        click.echo(json.dumps(result, default=str))
        return
    table = Table(show_header=False, box=None)
    for key, value in result.items():
        add_row(table, key.replace("_", " "), readable(value))
    show(table)


def add_row(table: Table, *cells: str) -> None:
    """A row of texts as they are: Rich would take [brackets] in names of users for markup."""
    table.add_row(*(Text(cell) for cell in cells))


def say(text: str) -> None:
    """A line for people, as it is, on stderr."""
    stderr.print(Text(text), soft_wrap=True)


def page(option: str, path: str | Path) -> Path:
    """Where an option's HTML page goes. Raises UsageError for other names: a slip must not write over a photo or a shard."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{option} {path}: name a file that ends in .html.")
    return Path(path).expanduser()


def readable(value: Any) -> str:
    """A value of an answer as people read it."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value) or "none"
    return "-" if value is None else str(value)
