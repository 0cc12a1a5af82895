"""Every setting with its type, default, unit, effect on results and meaning: `swav pretrain --settings` and docs/settings.md."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from swav_platform.config.schema import Config
from swav_platform.config.setting import ChangesResults, Section, declaration

EFFECTS: dict[ChangesResults, str] = {
    "yes": "other weights; part of the configuration digest, so a run resumes only with the same value",
    "no": "the same weights",
    "rounding": "the same weights up to floating-point rounding",
    "index": "other samples; not in the configuration digest, because the index has its own digest, which a resumed run checks",
}

_HEADER = """# Settings

All settings of a run. Each is a key of the YAML file and `key=value` on the command line.
`swav pretrain --settings` prints this table. This page is generated;
after a change of the schema run `python -m swav_platform.config > docs/settings.md`.

NAME is the name of a group of views; the default groups are `large` and `small`.
N is the position of a source in the list, from 0.

| changes results | a change of the setting gives |
|---|---|
"""
COLUMNS = ("setting", "type", "default", "unit", "changes results", "meaning")
_WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """default: as in JSON; None also where `required` is true, for a setting without a default."""

    setting: str
    type: str
    default: Any
    required: bool
    unit: str | None
    changes_results: ChangesResults
    meaning: str

    def cells(self) -> tuple[str, ...]:
        """Texts in the order of the table's columns."""
        default = "required" if self.required else json.dumps(self.default, ensure_ascii=False)
        return (self.setting, self.type, default, self.unit or "", self.changes_results, self.meaning)


@dataclass(frozen=True)
class Group:
    """The settings of one section."""

    name: str
    meaning: str
    settings: list[Setting]


def settings() -> list[Setting]:
    """All settings, section by section."""
    return [each for group in groups() for each in group.settings]


def groups() -> list[Group]:
    """All sections, in the order of the schema."""
    return list(_groups(Config, "", "settings outside of sections"))


def markdown() -> str:
    """docs/settings.md."""
    effects = "".join(f"| `{effect}` | {meaning} |\n" for effect, meaning in EFFECTS.items())
    return _HEADER + effects + "".join(map(_section_of_page, groups()))


def _section_of_page(group: Group) -> str:
    title = f"`{group.name}`: {group.meaning}" if group.name else group.meaning.capitalize()
    lines = [f"\n## {title}\n", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for each in group.settings:
        name, kind, default, *rest = each.cells()
        lines.append(_line([f"`{name}`", kind, f"`{default}`", *rest]))
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _groups(section: type[Section], prefix: str, meaning: str) -> Iterator[Group]:
    fields = section.model_fields
    leaves = {name: field for name, field in fields.items() if not _holds_sections(field.annotation)}
    yield Group(prefix.rstrip("."), meaning, [_setting(f"{prefix}{name}", field) for name, field in leaves.items()])
    for name, field in fields.items():
        for inner, key in _inner_sections(field.annotation):
            yield from _groups(inner, f"{prefix}{name}.{key}", declaration(field).meaning)


def _setting(name: str, field: FieldInfo) -> Setting:
    declared, required = declaration(field), field.is_required()
    default = None if required else to_jsonable_python(field.default)
    return Setting(name, _type(field), default, required, declared.unit, declared.changes_results, declared.meaning)


def _holds_sections(annotation: Any) -> bool:
    """Whether a field is a section or a mapping of sections, and no setting itself. `data.sources` is both."""
    return get_origin(annotation) is not tuple and any(_inner_sections(annotation))


def _inner_sections(annotation: Any) -> Iterator[tuple[type[Section], str]]:
    """Sections in a field, each with what stands for its key: NAME in a mapping, N in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, ""
        return
    key = {dict: "NAME.", tuple: "N."}.get(get_origin(annotation), "")
    for part in get_args(annotation):
        for inner, deeper in _inner_sections(part):
            yield inner, f"{key}{deeper}"


def _type(field: FieldInfo) -> str:
    limits = [(sign, getattr(limit, name)) for limit in field.metadata for name, sign in _BOUNDS.items() if hasattr(limit, name)]
    return ", ".join([_type_name(field.annotation), *(f"{sign} {_short(limit)}" for sign, limit in limits)])


def _short(limit: float) -> str:
    return str(limit) if limit < 1e6 else f"{limit:.2e}"


def _type_name(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type_name, parts))
    if origin is tuple:
        return f"list of {_type_name(parts[0])}" if parts[-1] is ... else f"{len(parts)} {_type_name(parts[0])}s"
    if origin is dict:
        return f"mapping of {_type_name(parts[0])} to {_type_name(parts[1])}"
    return _WORDS.get(annotation, "mapping")
