"""Turns validation errors into one paragraph for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from swav_platform.config.schema import Config, Source

_MESSAGES = {
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of settings",
    "model_type": "must be a mapping of settings",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "string_pattern_mismatch": "a name starts with a letter or digit and holds only letters, digits, blanks and . _ - (no / or :)",
}


def explain(error: ValidationError, tree: Mapping[str, Any], name: str, overrides: Sequence[str]) -> str:
    parts = []
    places = _by_place(error, tree)
    if all(_is_said(place, overrides) for place in places):
        name = "What the command line says"
    elif any(_is_partly_said(place, overrides) for place in places):
        name += " with the settings of the command line"
    for place, items in places.items():
        where = ".".join(map(str, place))
        if items[0]["type"] == "extra_forbidden":
            keys = [*known_keys(), *_keys_of_source(place)]
            nearest = [key for key in keys if key.endswith(f".{where}")] or difflib.get_close_matches(
                where, keys, n=1, cutoff=0.0
            )
            parts.append(
                f"unknown key '{where}'; the nearest known one is '{nearest[0]}'" if nearest else f"unknown key '{where}'"
            )
        else:
            message = ", or: ".join(_MESSAGES.get(i["type"], i["msg"].removeprefix("Value error, ")) for i in items)
            message = message.replace("Input should", "must").replace("must be a valid", "must be a")
            got = f" (got {items[0]['input']!r})" if where and not isinstance(items[0]["input"], dict) else ""
            parts.append(f"{where}: {message}{got}" if where else message)
    return f"{name} is not a valid configuration: {'; '.join(parts)}."


def _is_said(place: tuple[int | str, ...], overrides: Sequence[str]) -> bool:
    """Whether an override set all that lies at `place`."""
    return any(place[: len(key)] == key for key in (tuple(override.split(".")) for override in overrides))


def _is_partly_said(place: tuple[int | str, ...], overrides: Sequence[str]) -> bool:
    """Whether an override set something at `place`."""
    return any(tuple(override.split("."))[: len(place)] == place for override in overrides)


def _by_place(error: ValidationError, tree: Mapping[str, Any]) -> dict[tuple[int | str, ...], list[ErrorDetails]]:
    """Errors by where they stand in the tree. A value that may be of several kinds has errors for each of them; the
    deepest of them speak, for theirs is the kind that was meant."""
    found: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for item in error.errors():
        found.setdefault(_in_tree(item, tree), []).append(item)
    return {p: i for p, i in found.items() if not p or not any(len(o) > len(p) and o[: len(p)] == p for o in found)}


def _in_tree(item: ErrorDetails, tree: Any) -> tuple[int | str, ...]:
    """An error's place without the names of kinds that were tried, which stand in it but in no file."""
    place: list[int | str] = []
    for part in item["loc"]:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            continue
        place.append(part)
    return (*place, item["loc"][-1]) if item["type"] == "missing" else tuple(place)


def _keys_of_source(place: tuple[int | str, ...]) -> list[str]:
    return [".".join(map(str, (*place[:-1], key))) for key in Source.model_fields] if place[:2] == ("data", "sources") else []


def known_keys() -> Iterable[str]:
    """Dotted names of every setting; views by the names of the default groups."""
    return _keys(Config().model_dump(mode="json"), "")


def _keys(tree: Mapping[str, Any], prefix: str) -> Iterable[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
