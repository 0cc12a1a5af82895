"""Braces in names, written out as a shell does: {000..019}, {0..10..2}, {train,test}."""

from __future__ import annotations

import re

from swav_platform.errors import UsageError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?$")
_MOST = 1_000_000  # names that braces may stand for


def unbraced(pattern: str, text: str) -> list[str]:
    """`text` with its braces written out; braces that are neither range nor list stay.

    Raises UsageError, which names `pattern`, for more than a million names.
    """
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
