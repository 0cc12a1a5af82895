"""Expands braces in names, as shells and webdataset do: {000..019}, {0..10..2}, {a..f}, {train,test}."""

from __future__ import annotations

import re
from itertools import product
from math import prod

from braceexpand import alphabet, braceexpand

from swav_platform.errors import UsageError

_MOST = 1_000_000  # names that a pattern may expand to
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+|[A-Za-z])\.\.(-?\d+|[A-Za-z])(?:\.\.-?(\d+))?$")
_COUNTED = re.compile("\0(\\d+)\0")


def expand_braces(pattern: str) -> list[str]:
    """All names of a pattern. Braces that are neither a range nor a list, and unbalanced braces, stay as they are.

    Raises UsageError for more than a million names, before any of them exists.
    """
    if _count(pattern) > _MOST:
        raise UsageError(f"'{pattern}' stands for more than {_MOST:,} names: use a smaller range.")
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:  # unbalanced braces
        return [pattern]


def _count(pattern: str) -> int:
    """Number of names, from the inside out: each pair of braces is replaced by the number of its alternatives."""
    while (reduced := _INNERMOST.sub(lambda braces: f"\0{min(_alternatives(braces[1]), _MOST + 1)}\0", pattern)) != pattern:
        pattern = reduced
    return _combinations(pattern)


def _alternatives(inside: str) -> int:
    if match := _RANGE.match(inside):
        first, last = (alphabet.index(end) if end in alphabet else int(end) for end in match.group(1, 2))
        return abs(last - first) // (int(match[3] or 1) or 1) + 1
    return sum(map(_combinations, inside.split(",")))


def _combinations(text: str) -> int:
    return prod(int(count) for count in _COUNTED.findall(text))


_IN_COMMAND = re.compile(r"(?<![$\\])\{([^\s{}$'\"\\]*)\}")


def expand_in_command(command: str) -> list[str]:
    """The commands of a `pipe:` pattern with ranges, such as {000..019}, and lists without spaces, such as {train,test}.

    Other braces, such as ${HOME} and awk's '{print $1}', belong to the shell.
    """
    parts, at = [], 0
    for braces in _IN_COMMAND.finditer(command):
        if "," in braces[1] or _RANGE.match(braces[1]):
            parts += [[command[at : braces.start()]], expand_braces(braces[0])]
            at = braces.end()
    if prod(map(len, parts)) > _MOST:
        raise UsageError(f"'{command}' stands for more than {_MOST:,} commands: use a smaller range.")
    return ["".join(pieces) for pieces in product(*parts, [command[at:]])]
