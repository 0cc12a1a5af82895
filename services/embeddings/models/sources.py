"""Loads a model and its embeddings from a source, and tells one version of a source from the next."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import NamedTuple

from services.embeddings.explorer.notes import EXCLUDE, NAMES
from services.embeddings.search.items import FOLDER
from services.embeddings.settings import ServiceSettings, Source
from services.embeddings.store import Store, load_store
from swav_platform.data.sets.read import has_set
from swav_platform.errors import UsageError, UserError
from swav_platform.models.inference import InferenceModel, load_for_inference
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.storage import is_url, storage_of


class Loaded(NamedTuple):
    model: InferenceModel
    store: Store | None
    embeddings: Path | None
    name: str | None = None  # that the source gives it


def version(source: Source) -> str:
    """Changes when the source offers something else. Raises UserError if it can't be reached."""
    if _in_registry(source.place):
        from swav_platform.registry import resolve_version

        return resolve_version(_tracking(source), source.place) + _state(source.embeddings)
    if is_url(source.place):
        storage = storage_of(source.place)
        files = storage.entries()
        described = [name for name in files if name.endswith(("model.json", "manifest.json", "embeddings.json"))]
        parts = [f"{name} {size}" for name, size in sorted(files.items())] + [
            storage.get(name).hex() for name in sorted(described)
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = Path(source.place)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist any more.")
    is_run = (folder / "run.json").is_file()
    places = [folder / "model", source.embeddings or folder / "embeddings"] if is_run else [folder, source.embeddings]
    return "".join(_state(place) for place in places)


def load(source: Source, settings: ServiceSettings) -> Loaded:
    """Loads what the source offers now. Raises UserError if it can't be reached, is damaged, or does not fit together."""
    with tempfile.TemporaryDirectory(prefix="swav-model-") as scratch:
        package, embeddings = _find(source, Path(scratch))
        model = load_for_inference(
            package, settings.runtime, device=settings.device, threads=settings.threads, allow_int8=settings.allow_int8
        )
    if embeddings is not None and (embeddings / model.digest).is_dir():
        embeddings = embeddings / model.digest
    store = None if embeddings is None else load_store(embeddings, model, source.index)
    return Loaded(model, store, embeddings, source.name)


def _find(source: Source, scratch: Path) -> tuple[Path, Path | None]:
    """Folders of the package and of the embeddings."""
    if _in_registry(source.place):
        from swav_platform.registry import download_package

        return download_package(_tracking(source), source.place, scratch), source.embeddings
    run = RunFolder.at(str(storage_of(source.place).place) if is_url(source.place) else Path(source.place))
    if run.exists():
        own = run.embeddings if source.embeddings is None else source.embeddings
        return run.package, own if source.embeddings or has_set(own) else None
    if is_url(source.place):
        from swav_platform.data.storage.copies import local_copy_of_folder

        return local_copy_of_folder(source.place), source.embeddings
    return Path(source.place), source.embeddings


def _in_registry(place: str) -> bool:
    return place.startswith(("models:/", "runs:/"))


def _tracking(source: Source) -> str:
    if source.tracking_uri is None:
        raise UsageError(f"No MLflow server or store is named for {source.place}. Set --tracking-uri or MLFLOW_TRACKING_URI.")
    return source.tracking_uri


def _state(folder: Path | None) -> str:
    """Names, sizes and times of the files of a folder, as a digest; empty without a folder."""
    if folder is None or not folder.is_dir():
        return ""
    found = (path for path in folder.rglob("*") if not path.parent.name.endswith(FOLDER))  # items come at any time
    files = sorted(path for path in found if path.is_file() and not path.name.startswith(("_", ".")))
    files = [path for path in files if path.name not in (NAMES, EXCLUDE)]  # the service writes these itself
    told = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]
