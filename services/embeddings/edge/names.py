"""Unknown names in requests are refused with the nearest known one: a misspelt setting would else be dropped in silence."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel

from services.embeddings.errors import ServiceError


def refuse_unknown(where: str, given: Iterable[str], known: Collection[str], understood: Mapping[str, Any] | None = None) -> None:
    """Raises ServiceError 422 for the first given name that is not known. `understood`: the settings that were read."""
    for name in given:
        if name not in known:
            raise unknown(where, name, known, understood)


def unknown(where: str, name: str, known: Collection[str], understood: Mapping[str, Any] | None = None) -> ServiceError:
    """The error for a name that is not known. where: `query`, `body` or `form`."""
    near = nearest(name, known)
    hint = f"Did you mean {near!r}?" if near else f"Known are: {', '.join(sorted(known)) or 'none'}."
    detail = {"where": where, "unknown": name[:80], "nearest": near, "understood": dict(understood or {})}
    return ServiceError(422, "invalid_request", f"The {where} has the unknown name {name[:80]!r}. {hint}", detail)


def nearest(name: str, known: Collection[str]) -> str | None:
    found = difflib.get_close_matches(name[:80].lower(), known, n=1, cutoff=0.5)
    return found[0] if found else None


async def known_parameters(request: Request) -> None:
    """A FastAPI dependency of all routes: refuses query parameters that the route does not declare."""
    if request.query_params:
        refuse_unknown("query", request.query_params, query_names(request.scope["route"].dependant))


def query_names(dependant: Dependant) -> list[str]:
    """Names of the query parameters of a FastAPI route and of its dependencies; a model counts as its fields."""
    names = [name for dependency in dependant.dependencies for name in query_names(dependency)]
    for declared in dependant.query_params:
        kind = declared.field_info.annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else [declared.alias]
        names.extend(fields)
    return names
