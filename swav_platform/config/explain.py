"""Turns validation errors into one paragraph for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from swav_platform.config.data import Source
from swav_platform.config.schema import Config

Place = tuple[int | str, ...]
"""Keys and list positions from the root of the configuration to a value."""

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
    """name: of the file. overrides: keys set on the command line, which is named instead of the file where all errors are there."""
    found = _by_place(error, tree)
    if all(_is_overridden(place, overrides) for place in found):
        name = "The command line"
    elif any(_is_partly_overridden(place, overrides) for place in found):
        name += " with the settings of the command line"
    parts = [_unknown_key(p) if items[0]["type"] == "extra_forbidden" else _bad_value(p, items) for p, items in found.items()]
    paragraph = f"{name} is not a valid configuration: {'; '.join(parts)}"
    return paragraph if paragraph.endswith("?") else f"{paragraph}."


def _unknown_key(place: Place) -> str:
    where = ".".join(map(str, place))
    keys = [*known_keys(), *_keys_of_source(place)]
    nearest = [key for key in keys if key.endswith(f".{where}")] or difflib.get_close_matches(where, keys, n=1, cutoff=0.0)
    return f"unknown key '{where}'" + (f"; did you mean '{nearest[0]}'?" if nearest else "")


def _bad_value(place: Place, items: Sequence[ErrorDetails]) -> str:
    where, value = ".".join(map(str, place)), items[0]["input"]
    message = ", or: ".join(_MESSAGES.get(i["type"], i["msg"].removeprefix("Value error, ")) for i in items)
    message = message.replace("Input should", "must").replace("must be a valid", "must be a")
    got = f" (got {value!r})" if where and not isinstance(value, dict) else ""
    return f"{where}: {message}{got}" if where else message


def _is_overridden(place: Place, overrides: Sequence[str]) -> bool:
    """Whether an override set the whole value at `place`."""
    return any(place[: len(key)] == key for key in (tuple(override.split(".")) for override in overrides))


def _is_partly_overridden(place: Place, overrides: Sequence[str]) -> bool:
    """Whether an override set something below `place`."""
    return any(tuple(override.split("."))[: len(place)] == place for override in overrides)


def _by_place(error: ValidationError, tree: Mapping[str, Any]) -> dict[Place, list[ErrorDetails]]:
    """Errors by their place in the tree. A value of a union has errors for each type of it; only the deepest are kept, since they are
    about the type that the user meant."""
    found: dict[Place, list[ErrorDetails]] = {}
    for item in error.errors():
        found.setdefault(_in_tree(item, tree), []).append(item)
    return {p: i for p, i in found.items() if not p or not any(len(o) > len(p) and o[: len(p)] == p for o in found)}


def _in_tree(item: ErrorDetails, tree: Any) -> Place:
    """The place of an error without the names of union members, which pydantic adds to it."""
    place: list[int | str] = []
    for part in item["loc"]:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            continue
        place.append(part)
    return (*place, item["loc"][-1]) if item["type"] == "missing" else tuple(place)


def _keys_of_source(place: Place) -> list[str]:
    return [".".join(map(str, (*place[:-1], key))) for key in Source.model_fields] if place[:2] == ("data", "sources") else []


def known_keys() -> Iterable[str]:
    """Dotted names of all settings, those of views with the names of the default groups."""
    return _keys(Config().model_dump(mode="json"), "")


def _keys(tree: Mapping[str, Any], prefix: str) -> Iterable[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
