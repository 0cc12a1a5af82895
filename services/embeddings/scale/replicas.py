"""The service under Ray Serve: the same application in replicas that Ray places, counts, watches and starts again.

configs/serve/service.yaml names `build` as its import path; its `args` are fields of ServiceSettings.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError

from services.embeddings.edge.access import VARIABLE
from services.embeddings.edge.names import nearest
from services.embeddings.settings import ServiceSettings
from swav_platform.errors import UsageError

if TYPE_CHECKING:
    from ray import serve

NOT_HERE = {"host", "port", "workers", "alone", "keep_alive", "notice", "root_path"}
"""Settings of our own server: Ray Serve's proxies listen instead."""


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a file of Ray Serve. Raises UsageError for arguments that are no settings of the service, or without keys.

    `no_auth: true` among the arguments lets everybody ask.
    """
    from ray import serve

    asked = settings({name: value for name, value in args.items() if name != "no_auth"})
    keyed = asked.keys is not None or bool(os.environ.get(VARIABLE))
    if args.get("no_auth", False) is keyed:
        raise UsageError("Name a file of API keys (`keys`, made by `swav keys create`), or set `no_auth: true` in the arguments.")
    return serve.deployment(name="service")(serve.ingress()(Service)).bind(asked)


def settings(args: dict[str, Any]) -> ServiceSettings:
    """Raises UsageError for an unknown or missing argument, or a value of another type."""
    known = {field.name for field in dataclasses.fields(ServiceSettings)} - NOT_HERE
    for name in args:
        if name not in known:
            near = nearest(name, known)
            hint = f"Did you mean {near}?" if near else f"Known are {', '.join(sorted(known))}."
            raise UsageError(f"The service has no argument {name!r} under Ray Serve. {hint}")
    try:
        return TypeAdapter(ServiceSettings).validate_python(args)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UsageError(f"The arguments of the service are invalid: {told}.") from None


class Service:
    """One replica. Ray Serve calls `check_health`, and replaces a replica that fails it."""

    def __init__(self, asked: ServiceSettings) -> None:
        import ray

        cores = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
        self._settings = replace(
            asked,
            threads=asked.threads or cores,
            decoders=asked.decoders or cores,
            alone=False,
        )
        self._app: FastAPI | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        from services.embeddings.app import create_app

        self._app = create_app(self._settings)
        return self._app

    async def check_health(self) -> None:
        """Raises RuntimeError if the replica can't encode a test image."""
        if self._app is not None and (because := await self._app.state.service.broken()):
            raise RuntimeError(because)
