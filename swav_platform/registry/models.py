"""Model packages in MLflow's registry: registered, named by an alias, downloaded."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from pathlib import Path
from typing import Any, NoReturn

from swav_platform.config.secrets import without_secrets
from swav_platform.errors import UsageError, UserError
from swav_platform.registry.connect import connect, short_limits
from swav_platform.registry.errors import TrackingError, explained, kind_of

CANDIDATE = "candidate"
DIGEST = "swav.package_digest"


def register_package(uri: str, run_id: str, folder: Path, model: str) -> str:
    """Uploads a model package to its run, registers it with the alias `candidate` and returns its models:/ URI.

    A package that is registered already is not registered again. Raises TrackingError.
    """
    with explained(uri):
        client, digest = connect(uri), _digest(folder)
        version = _version_of(client, model, run_id, digest)
        if version is None:
            client.log_artifacts(run_id, str(folder), artifact_path="model")
            try:
                client.create_registered_model(model)
            except Exception as error:
                if kind_of(error) != "exists":
                    raise
            source = f"runs:/{run_id}/model"
            version = client.create_model_version(model, source=source, run_id=run_id, tags={DIGEST: digest})
            client.set_registered_model_alias(model, CANDIDATE, version.version)
        return f"models:/{model}/{version.version}"


def set_alias(uri: str, model_uri: str, alias: str) -> None:
    """Points the alias at a version. Raises UsageError for an alias that MLflow does not take, else TrackingError."""
    _, name, version = model_uri.split("/", 2)
    with explained(uri):
        try:
            connect(uri).set_registered_model_alias(name, alias, version)
        except Exception as error:
            if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                raise UsageError(f"'{alias}' can't be an alias: {str(error).splitlines()[0]}") from None
            raise


def download_package(uri: str, model_uri: str, into: Path) -> Path:
    """Downloads the package of models:/NAME@alias, models:/NAME/version or runs:/ID/model into a folder; returns its path.

    Only the server or store at `uri` is asked. Raises UsageError for another kind of URI, else TrackingError.
    """
    reference = _Reference(model_uri)
    with explained(uri):
        with short_limits():
            client = connect(uri, create=False)
            source = _source(client, uri, reference)
        import mlflow.artifacts

        into.mkdir(parents=True, exist_ok=True)
        try:
            path = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(into), tracking_uri=uri))
        except Exception as error:
            if kind_of(error) in ("missing", "other") and not isinstance(error, UserError):
                raise TrackingError(
                    f"The files of {model_uri} are not in MLflow at {without_secrets(uri)} ({without_secrets(source)}). "
                    f"Register the model again with `swav promote RUN`.",
                    "missing",
                ) from error
            raise
    if not (path / "model.json").is_file():
        raise UserError(
            f"{model_uri} is not a model of swav: it has no model.json. Name a model that `swav pretrain` registered."
        )
    return path


def resolve_version(uri: str, model_uri: str) -> str:
    """The version that models:/NAME@alias names now; other URIs name what never changes. Raises as download_package."""
    reference = _Reference(model_uri)
    if not reference.alias:
        return model_uri
    with explained(uri), short_limits():
        client = connect(uri, create=False)
        try:
            return str(client.get_model_version_by_alias(reference.name, reference.alias).version)
        except Exception as error:
            _unless_missing(error)
            _explain_missing(client, without_secrets(uri), reference)


class _Reference:
    """A model URI in parts. Either `run_id` and `path`, or `name` and one of `alias` and `version`."""

    def __init__(self, text: str) -> None:
        self.text, self.run_id, self.path = text, "", ""
        self.name, self.alias, self.version = "", "", ""
        if found := re.fullmatch(r"runs:/([^/]+)/(.+?)/?", text):
            self.run_id, self.path = found.groups()
        elif found := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+|latest))", text):
            self.name, self.alias, self.version = (part or "" for part in found.groups())
        else:
            raise UsageError(
                f"{text} is not a model URI that can be loaded. Use models:/NAME@alias, models:/NAME/3 or runs:/RUN_ID/model."
            )


def _source(client: Any, uri: str, wanted: _Reference) -> str:
    """Where the files are. MLflow's own download would look a model up in the process-wide registry."""
    where = without_secrets(uri)
    if wanted.run_id:
        try:
            client.get_run(wanted.run_id)
        except Exception as error:
            _unless_missing(error)
            raise TrackingError(
                f"MLflow at {where} has no run {wanted.run_id}. The run's id is in RUN/run.json.", "missing"
            ) from None
        return wanted.text
    try:
        if wanted.alias:
            version = client.get_model_version_by_alias(wanted.name, wanted.alias).version
        elif wanted.version == "latest":
            version = max(int(each.version) for each in _versions(client, wanted.name))
        else:
            version = client.get_model_version(wanted.name, wanted.version).version
        return str(client.get_model_version_download_uri(wanted.name, str(version)))
    except Exception as error:
        if not isinstance(error, ValueError):
            _unless_missing(error)
        _explain_missing(client, where, wanted)


def _unless_missing(error: Exception) -> None:
    """Raises `error` unless it says that something does not exist. MLflow calls an unknown alias an invalid parameter."""
    unknown_alias = getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE" and "alias" in str(error)
    if kind_of(error) != "missing" and not unknown_alias:
        raise error


def _explain_missing(client: Any, where: str, wanted: _Reference) -> NoReturn:
    try:
        model = client.get_registered_model(wanted.name)
    except Exception as error:
        _unless_missing(error)
        names = [each.name for each in client.search_registered_models(max_results=100)]
        near = difflib.get_close_matches(wanted.name, names, 1)
        hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(sorted(names)[:10]) or 'no models'}."
        raise TrackingError(f"MLflow at {where} has no model {wanted.name}. {hint}", "missing") from None
    if wanted.alias:
        aliases = ", ".join(f"{alias} (version {version})" for alias, version in sorted(model.aliases.items()))
        raise TrackingError(
            f"The model {wanted.name} in MLflow at {where} has no alias {wanted.alias}. Its aliases: {aliases or 'none'}.",
            "missing",
        )
    numbers = ", ".join(sorted((str(each.version) for each in _versions(client, wanted.name)), key=int))
    raise TrackingError(
        f"The model {wanted.name} in MLflow at {where} has no version {wanted.version}. Its versions: {numbers or 'none'}.",
        "missing",
    )


def _versions(client: Any, model: str) -> list[Any]:
    return list(client.search_model_versions(f"name='{model}'"))


def _version_of(client: Any, model: str, run_id: str, digest: str) -> Any:
    """The version that holds this package; None if there is none."""
    with contextlib.suppress(StopIteration):
        return next(each for each in _versions(client, model) if each.run_id == run_id and each.tags.get(DIGEST) == digest)
    return None


def _digest(folder: Path) -> str:
    """Of the weights: model.json has the time of its export, and reference features differ in their last digits."""
    found, without = hashlib.sha256(), ("model.json", "reference.safetensors")
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without):
        with path.open("rb") as file:
            found.update(f"{path.relative_to(folder)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return found.hexdigest()
