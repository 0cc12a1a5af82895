"""Reads a configuration: YAML files, composed by `extends`, then dotted overrides."""

from __future__ import annotations

import datetime
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from swav_platform.config.explain import explain
from swav_platform.config.schema import Config, ConfigError

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
"""Recipes that come with the project, where it is installed from its folder."""


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file (or of the defaults) with `key.path=value` overrides.

    Raises ConfigError for a missing file, bad YAML, an unknown key (with the nearest known name) or a bad value.
    """
    tree = _read(Path(path), ()) if path is not None else {}
    for override in overrides:
        _apply(tree, override)
    said = [override.partition("=")[0] for override in overrides]
    return from_tree(tree, str(path) if path is not None else "the configuration", said)


def load_with(
    path: str | Path, overrides: Sequence[str], *, data: Sequence[str] = (), name: str | None = None, out: str | None = None
) -> Config:
    """`load` with what the options --data, --name and --out of a command say. Raises ConfigError also for what is said twice."""
    given = {"--data": ("data.sources", list(data)), "--name": ("run.name", name), "--out": ("run.out", out)}
    said = list(overrides)
    for option, (key, value) in given.items():
        if value and any(override.startswith(f"{key}=") for override in overrides):
            raise ConfigError(f"{option} and {key}= say the same thing twice: take one of them away.")
        if value:
            said.append(f"{key}={json.dumps(value)}")
    config = load(path, said)
    if data and config.data.index:
        raise ConfigError(f"--data and data.index={config.data.index} both say what to learn from: take one of them away.")
    return config


def from_tree(tree: Mapping[str, Any], name: str = "the configuration", overrides: Sequence[str] = ()) -> Config:
    """name: of the file that an error is about, unless it lies in what `overrides`, keys of the command line, have set."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, tree, name, overrides)) from None


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.expanduser().resolve()
    if path in seen:
        raise ConfigError(f"{path}: `extends` goes in a circle; take one of the files out of it.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.y*ml")], 1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else " Name an existing YAML file."
        if (RECIPES / path.name).is_file() and not near:
            hint = f" There is one of that name among swav's own recipes: {RECIPES / path.name}"
        raise ConfigError(f"There is no configuration file {path}.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration file {path} can't be read ({error}); check its permissions and that it is text."
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2024-99-99 looks like a date
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of settings at its top level, not a {type(tree).__name__}.")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    return _merge(_read(path.parent / str(parent), (*seen, path)), tree)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inherited = merged.get(key)
        merged[key] = _merge(inherited, value) if isinstance(inherited, dict) and isinstance(value, dict) else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        hint = (
            " If it is one of the files of a pattern, quote the pattern, so that the shell leaves it alone."
            if "." in override
            else ""
        )
        raise ConfigError(f"'{override}' is not an override; write key=value, for example train.steps=200.{hint}")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: 2024-99-99 looks like a date
        value = text
    if isinstance(value, datetime.date):
        value = text  # there are no dates among the settings, but a name may look like one
    if isinstance(value, str) and value == text.strip() and _is_number(value):  # not in quotes
        value = float(value)  # YAML 1.1 reads 1e-3 as text
    *sections, last = key.split(".")
    for depth, section in enumerate(sections):
        node = tree.setdefault(section, _default_subtree(sections[: depth + 1]))
        if not isinstance(node, dict):
            name = ".".join(sections[: depth + 1])
            raise ConfigError(f"'{override}': {name} is a value already ({node!r}), not a section: say all of it, or none of it.")
        tree = node
    tree[last] = [value] if key == "data.sources" and isinstance(value, str) else value


def _default_subtree(path: Sequence[str]) -> dict[str, Any]:
    """What an override starts from: views have no defaults of their own, so one of them is taken whole."""
    if path == ["views"]:
        return {name: group.model_dump() for name, group in Config().views.items()}
    return {}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in ("nan", "inf", "infinity")
