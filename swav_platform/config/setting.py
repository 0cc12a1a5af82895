"""How a field of the configuration declares its meaning, its unit, and its effect on results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

ChangesResults = Literal["yes", "no", "rounding", "index"]
"""Effect of a setting on the weights that a run learns. `yes`: part of `Config.digest()`. `no`: none. `rounding`: floating-point
rounding only. `index`: selects the samples; the digest of the index covers it."""

REQUIRED = ...


class Section(BaseModel):
    """A group of settings. Fields are declared with `setting`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Declaration:
    """What a field says about itself. newer: see `setting`."""

    meaning: str
    unit: str | None
    changes_results: ChangesResults
    newer: bool


def setting(
    default: Any,
    meaning: str,
    *,
    unit: str | None = None,
    changes_results: ChangesResults = "yes",
    newer: bool = False,
    **constraints: Any,
) -> Any:
    """A field of a `Section`. `default` is REQUIRED for a field without one; `constraints` are those of `pydantic.Field`.

    newer: runs from before this setting existed behaved like its default. The digest omits the setting while it has that default, so
    that those runs keep their digest. The default must then never change.
    """
    declared = {"unit": unit, "changes_results": changes_results, "newer": newer}
    return Field(default, description=meaning, json_schema_extra=cast(Any, declared), **constraints)


def declaration(field: FieldInfo) -> Declaration:
    """Raises TypeError for a field that was not made by `setting`."""
    extra = field.json_schema_extra
    if field.description is None or not isinstance(extra, dict) or "changes_results" not in extra:
        raise TypeError("declare every field of a section with setting()")
    return Declaration(field.description, *(cast(Any, extra[key]) for key in ("unit", "changes_results", "newer")))


def what_changes_results(section: Section, tree: dict[str, Any]) -> dict[str, Any]:
    """The part of `tree`, the JSON form of `section`, that decides the results. A mapping of sections becomes a list of pairs, since
    their order counts: it says which views are assigned and which random numbers each view gets."""
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value, declared = getattr(section, name), declaration(field)
        if declared.changes_results != "yes" or (declared.newer and tree[name] == field.default):
            continue
        if isinstance(value, Section):
            found[name] = what_changes_results(value, tree[name])
        elif isinstance(value, dict):
            found[name] = [[key, what_changes_results(group, tree[name][key])] for key, group in value.items()]
        else:
            found[name] = tree[name]
    return found
