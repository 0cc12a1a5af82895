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
from swav_platform.config.secrets import HIDDEN, has_hidden

_PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = next((f for f in (_PACKAGE.parent / "configs" / "pretrain", _PACKAGE / "recipes") if f.is_dir()), _PACKAGE / "recipes")
"""The recipes of the project: in a checkout configs/pretrain, which an installed wheel has as swav_platform/recipes."""


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file, or the defaults, with `key.path=value` overrides.

    Raises ConfigError for a missing file, invalid YAML, an unknown key (with the nearest known name) or an invalid value.
    """
    tree = _read(_file(Path(path)), ()) if path is not None else {}
    for override in overrides:
        _apply(tree, override)
    keys = [override.partition("=")[0] for override in overrides]
    return from_tree(tree, str(path) if path is not None else "the configuration", keys)


def load_with(
    path: str | Path, overrides: Sequence[str], *, data: Sequence[str] = (), name: str | None = None, out: str | None = None
) -> Config:
    """`load` with the options --data, --name and --out of a command. Raises ConfigError also for a setting that is given twice."""
    options = {"--data": ("data.sources", list(data)), "--name": ("run.name", name), "--out": ("run.out", out)}
    settings = list(overrides)
    for option, (key, value) in options.items():
        if value and any(override.startswith(f"{key}=") for override in overrides):
            raise ConfigError(f"{option} and {key}= set the same value; remove one of them.")
        if value:
            settings.append(f"{key}={json.dumps(value)}")
    config = load(path, settings)
    if data and config.data.index:
        raise ConfigError(
            f"--data finds shards and indexes them; data.index={config.data.index} names an index that is made already, so only one of "
            f"them can select the images. Remove --data to use the index as it is, also to resume a run with the shards that it began with."
        )
    _refuse_hidden(config.model_dump(mode="json"), str(path))
    return config


_REMEDIES = {
    "data.sources": "Give the addresses again with --data, or resume with data.sources=[], which uses the run's own index.",
    "tracking.uri": "Give it again with tracking.uri=, or set tracking.uri=null and the variable MLFLOW_TRACKING_URI.",
}


def _refuse_hidden(tree: Mapping[str, Any], path: str) -> None:
    """Raises ConfigError for an address without its password, as files of a run have it."""
    for section, values in tree.items():
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if has_hidden(json.dumps(value, ensure_ascii=False)):
                name = f"{section}.{key}"
                raise ConfigError(
                    f"{path}: {name} has {HIDDEN} in place of a password, token or signature, because a run's files hold no secrets. "
                    + _REMEDIES.get(name, f"Give it again with {name}=.")
                )


def from_tree(tree: Mapping[str, Any], name: str = "the configuration", overrides: Sequence[str] = ()) -> Config:
    """Raises ConfigError. name: the file that the message names. overrides: keys set on the command line; the message names the command
    line for errors in these."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, tree, name, overrides)) from None


def _file(path: Path) -> Path:
    """The file of that path, or the project's recipe of that name if there is no such file: `small.yaml` or `small`."""
    if path.name == str(path) and not path.exists():
        for recipe in (RECIPES / path.name, RECIPES / f"{path.name}.yaml"):
            if recipe.is_file():
                return recipe
    return path


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The tree of a file with that of the file that it extends. seen: files that led here."""
    path = path.expanduser().resolve()
    if path in seen:
        raise ConfigError(f"{path}: `extends` forms a circle; remove one of the files from it.")
    tree = _parse(path)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    return _merge(_read(path.parent / str(parent), (*seen, path)), tree)


def _parse(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}.{_hint(path)}") from None
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
    return tree


def _hint(missing: Path) -> str:
    near = difflib.get_close_matches(missing.name, [other.name for other in missing.parent.glob("*.y*ml")], 1)
    if near:
        return f" Did you mean {missing.parent / near[0]}?"
    if (RECIPES / missing.name).is_file():
        return f" The project has a recipe of that name: {RECIPES / missing.name}"
    return " Name an existing YAML file."


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inherited = merged.get(key)
        merged[key] = _merge(inherited, value) if isinstance(inherited, dict) and isinstance(value, dict) else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        hint = " To pass a glob pattern, put it in quotes so that the shell does not expand it." if "." in override else ""
        raise ConfigError(f"'{override}' is not an override; write key=value, for example train.steps=200.{hint}")
    value = _value(text)
    *sections, last = key.split(".")
    for depth, section in enumerate(sections):
        node = tree.setdefault(section, _default_subtree(sections[: depth + 1]))
        if not isinstance(node, dict):
            name = ".".join(sections[: depth + 1])
            raise ConfigError(f"'{override}': {name} already has the value {node!r} and is not a section; set {name} as a whole.")
        tree = node
    tree[last] = [value] if key == "data.sources" and isinstance(value, str) else value


def _value(text: str) -> Any:
    """An override's value: YAML, except that dates stay text and numbers such as 1e-3, which YAML 1.1 reads as text, are numbers."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: 2024-99-99 looks like a date
        value = text
    if isinstance(value, datetime.date):
        return text
    unquoted = isinstance(value, str) and value == text.strip()
    return float(value) if unquoted and _is_number(value) else value


def _default_subtree(path: Sequence[str]) -> dict[str, Any]:
    """The section that an override changes. Groups of views have required settings, so they start from the default groups."""
    if path == ["views"]:
        return {name: group.model_dump() for name, group in Config().views.items()}
    return {}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in ("nan", "inf", "infinity")
