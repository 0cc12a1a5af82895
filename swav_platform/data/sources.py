"""What a user names as data -> a list of tars."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from swav_platform.data.naming import IMAGES
from swav_platform.errors import UsageError, UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?$")
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_MOST = 1_000_000  # names that braces may stand for


def expand(patterns: Sequence[str]) -> list[str]:
    """Absolute paths of tars, in natural order (shard-2 before shard-10), each once.

    A pattern is a path, a folder with tars at any depth, a glob, or has braces: {000..019}, {0..10..2}, {train,test}.
    Raises UsageError for a pattern that names nothing and UserError for remote data.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    if not patterns:
        raise UsageError("No data is named: give a folder of tars, a tar, or a pattern such as 'shards-{000..019}.tar'.")
    found = {path for pattern in patterns for path in _expand(pattern)}
    return sorted(found, key=_natural)


def _expand(pattern: str) -> list[str]:
    local = _local(pattern)
    if os.path.exists(local):
        return _at(pattern, local)
    found = []
    for name in _unbraced(pattern, local):
        if os.path.exists(name):
            found += _at(pattern, name)
        elif not glob.has_magic(name):
            part = "" if name == local else f", of '{pattern}',"
            raise UsageError(f"There is no file or folder '{name}'{part}: check the spelling, or name data that is there.")
        else:
            matches = glob.glob(name, recursive=True)
            if not matches:
                raise UsageError(
                    f"Nothing matches '{pattern}': check the folder and the pattern (quote it, so that the shell leaves it)."
                )
            found += [path for match in matches for path in _at(pattern, match)]
    return found


def _local(pattern: str) -> str:
    if not pattern.strip():
        raise UsageError("A data pattern is empty: give a folder of tars, a tar, or a pattern such as 'shards-{000..019}.tar'.")
    if pattern.startswith("pipe:") or "::" in pattern:
        raise UsageError(
            f"'{pattern}' can't be used: `pipe:` commands and `::` lists are not read; name files, several as several patterns."
        )
    if pattern.startswith("file://"):
        pattern = pattern.removeprefix("file://")
    elif url := _URL.match(pattern):
        raise UserError(
            f"'{pattern}' is remote: {url[1]}:// is not read yet by this version. Copy the tars to a disk and name them there."
        )
    return os.path.expanduser(pattern)


def _at(pattern: str, path: str) -> list[str]:
    """The tar at a path, or the tars below it."""
    path = os.path.abspath(path)
    if not os.path.isdir(path):
        return [path]
    found = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(".tar") and name[0] != "."
    ]
    if not found:
        raise UsageError(_why_no_tars(pattern, path))
    return found


def _why_no_tars(pattern: str, folder: str) -> str:
    names = [name.lower() for _, _, files in islice(os.walk(folder), 1000) for name in files]
    if any(name.rpartition(".")[2] in IMAGES for name in names):
        return f"The folder '{pattern}' holds images but no tars: run `swav pack '{pattern}' --out SHARDS` first and name SHARDS."
    if any(name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")) for name in names):
        return f"The folder '{pattern}' holds only compressed tars: unpack them to plain .tar files."
    return f"The folder '{pattern}' holds neither tars nor images: name another one."


def _unbraced(pattern: str, text: str) -> list[str]:
    """`text` with its braces written out, as a shell does; braces that are neither range nor list stay."""
    found, rest = [""], 0
    for match in _BRACES.finditer(text):
        values = _values(match[1])
        between = text[rest : match.start()]
        if len(found) * len(values) > _MOST:
            raise UsageError(f"'{pattern}' stands for more than {_MOST:,} names: give a smaller range.")
        found = [f"{head}{between}{value}" for head in found for value in values]
        rest = match.end()
    return [head + text[rest:] for head in found]


def _values(inside: str) -> list[str]:
    if match := _RANGE.match(inside):
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
        if abs(last - first) // step > _MOST:
            raise UsageError(f"'{{{inside}}}' stands for more than {_MOST:,} names: give a smaller range.")
        padded = any(len(end) > 1 and end.startswith("0") for end in (match[1], match[2]))
        width = max(len(match[1]), len(match[2])) if padded else 0
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return [str(number).zfill(width) for number in numbers]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def _natural(path: str) -> list[tuple[int, int, str]]:
    """Digits count as numbers; the text itself decides between 1 and 01."""
    parts = re.split(r"(\d+)", str(Path(path)))
    key = [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]
    return [*key, (0, 0, path)]
