"""Checkpoint files: `step-000001234/` with three safetensors files, state.json and MANIFEST.json.

The manifest is written last. A checkpoint is valid only if its files match the manifest, so a crash during a write leaves the previous
checkpoint as the newest valid one. `folder` is the `checkpoints` of a run, on a disk or in an object store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from swav_platform.atomic import cure, sync_folder
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.parts import read_events
from swav_platform.data.samples import Killers
from swav_platform.errors import UserError
from swav_platform.rows.isolation import killers_among
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.storage import Place, base_name, join, storage_of

MANIFEST = "MANIFEST.json"
_OLD_LEDGER = "ledger.parquet"  # in checkpoints of older versions
log = logging.getLogger("swav")

_NAME = re.compile(r"step-\d{9}")


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after `steps` finished steps."""

    steps: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    method: Mapping[str, Tensor]
    state: Mapping[str, Any]  # JSON
    ledger: bytes = b""  # of checkpoints of older versions; now the run's folder has it


def save(folder: Place, snapshot: Snapshot, confirm: Callable[[], None] = lambda: None) -> Place:
    """Writes `folder`/step-… durably and returns its place. Replaces an older or incomplete checkpoint of that name.

    confirm: called before the manifest is written. Raises UserError when the storage can't be written; earlier checkpoints are not
    affected.
    """
    path = join(folder, name_of(snapshot.steps))
    if isinstance(path, Path):
        _write_to_disk(path, snapshot)
    else:
        _upload(path, snapshot, confirm)
    return path


def _write_to_disk(path: Path, snapshot: Snapshot) -> None:
    try:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        files = [_write(path / name, data) for name, data in _contents(snapshot)]
        sync_folder(path)
        _write(path / f"{MANIFEST}.part", _manifest(files))
        os.replace(path / f"{MANIFEST}.part", path / MANIFEST)
        sync_folder(path)
        sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise UserError(
            f"The checkpoint {path} can't be written ({error.strerror or error}): {cure(error)}, then resume with --resume. "
            f"Earlier checkpoints are not affected; train.keep_checkpoints sets how many are kept."
        ) from error


def _upload(path: str, snapshot: Snapshot, confirm: Callable[[], None]) -> None:
    storage = storage_of(path)
    storage.delete([MANIFEST])  # of an older checkpoint of that name
    files = []
    for name, data in _contents(snapshot):
        storage.put(name, data)
        files.append(_described(name, data))
    confirm()
    storage.put(MANIFEST, _manifest(files))


def _contents(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files, made one by one."""
    yield "model.safetensors", _pack(snapshot.model)
    yield "optimizer.safetensors", _pack(snapshot.optimizer)
    yield "method.safetensors", _pack(snapshot.method)
    yield "state.json", json.dumps({"format": 1, "steps": snapshot.steps, **snapshot.state}).encode()


def _manifest(files: list[dict[str, Any]]) -> bytes:
    return json.dumps({"format": 1, "files": files}, indent=1).encode()


def is_valid(path: Place) -> bool:
    """Whether the manifest exists and every file has the size and SHA-256 in it. In an object store only sizes are compared."""
    try:
        if isinstance(path, Path):
            files = _listed((path / MANIFEST).read_bytes())
            return all((path / f["name"]).stat().st_size == f["size"] and _sha256(path / f["name"]) == f["sha256"] for f in files)
        files, found = _listed(storage_of(path).get(MANIFEST)), storage_of(path).entries()
        return all(found.get(f["name"]) == f["size"] for f in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _listed(manifest: bytes) -> list[dict[str, Any]]:
    """The files in a manifest. Raises ValueError, KeyError or TypeError for a damaged one."""
    files: list[dict[str, Any]] = json.loads(manifest)["files"]
    if not len(files):
        raise ValueError("no files")
    return files


def name_of(steps: int) -> str:
    """The folder's name of the checkpoint after `steps` steps."""
    return f"step-{steps:09d}"


def steps_of(path: Place) -> int:
    """Number of finished steps, from the folder's name."""
    return int(base_name(path).removeprefix("step-"))


def latest_valid(folder: Place) -> Place | None:
    """The newest valid checkpoint in `folder`, or None. Skips damaged and incomplete checkpoints with a warning.

    Raises UserError if all complete checkpoints are damaged, so that a run does not restart silently from step 0.
    """

    for path in _newest_first(folder):
        if is_valid(path):
            return path
    return None


def newest(folder: Place) -> tuple[Place, Snapshot] | None:
    """The newest valid checkpoint with its content, like `latest_valid`; in an object store it compares SHA-256 as well."""

    for path in _newest_first(folder):
        if isinstance(path, str) or is_valid(path):
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # damaged or deleted meanwhile
                return path, load(path)
    return None


def before(folder: Place, steps: int) -> Place | None:
    """The newest valid checkpoint of at most `steps` steps, or None."""
    return next((path for path, _ in reversed(_all(folder)) if steps_of(path) <= steps and is_valid(path)), None)


def after(folder: Place, steps: int) -> list[Place]:
    """Checkpoints of more than `steps` steps."""
    return [path for path, _ in _all(folder) if steps_of(path) > steps]


def _newest_first(folder: Place) -> Iterator[Place]:
    """All checkpoints. After the last one, raises UserError if there was a complete one, because the caller took none of them."""
    damaged = []
    for path, complete in reversed(_all(folder)):
        yield path
        log.warning("Skipping %s: it is incomplete or damaged.", path)
        if complete:
            damaged.append(str(path))
    if damaged:
        raise UserError(
            f"All checkpoints of this run are damaged: {', '.join(damaged)} differ from their manifests. Restore one from a copy, "
            f"or delete {folder} to restart the run from scratch."
        )


def load(path: Place) -> Snapshot:
    """Reads a checkpoint into host memory. In an object store, raises ValueError for a file that differs from the manifest."""
    if isinstance(path, Path):
        state = json.loads((path / "state.json").read_bytes())
        model, optimizer, method = (
            safetensors.torch.load_file(path / f"{name}.safetensors") for name in ("model", "optimizer", "method")
        )
        old = path / _OLD_LEDGER
        return Snapshot(int(state["steps"]), model, optimizer, method, state, old.read_bytes() if old.is_file() else b"")
    storage = storage_of(path)
    known = {file["name"]: file for file in _listed(storage.get(MANIFEST))}

    def read(name: str) -> bytes:
        data = storage.get(name)
        if _described(name, data) != known[name]:
            raise ValueError(f"{path}/{name} differs from its manifest")
        return data

    state = json.loads(read("state.json"))
    model, optimizer, method = (safetensors.torch.load(read(f"{name}.safetensors")) for name in ("model", "optimizer", "method"))
    return Snapshot(int(state["steps"]), model, optimizer, method, state)


def prune(folder: Place, keep: int) -> None:
    """Deletes every checkpoint older than the newest `keep` with a manifest, including incomplete ones."""
    found = _all(folder)
    kept = [steps_of(path) for path, complete in found if complete][-keep:]
    for path, _ in found:
        if kept and steps_of(path) < kept[0]:
            _delete(path)


def delete(paths: Iterable[Place]) -> None:
    """Deletes checkpoints, newest first, so that an interrupted deletion leaves those of a shorter run."""
    for path in sorted(paths, key=steps_of, reverse=True):
        _delete(path)


def _delete(path: Place) -> None:
    """The manifest first, so that an interrupted deletion leaves no valid checkpoint."""
    if isinstance(path, Path):
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        storage = storage_of(path)
        storage.delete([MANIFEST, *storage.entries()])


def _all(folder: Place) -> list[tuple[Place, bool]]:
    """All checkpoints, oldest first, and whether each has a manifest."""
    if isinstance(folder, Path):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        return [(path, (path / MANIFEST).exists()) for path in inside if _NAME.fullmatch(path.name)]
    keys = storage_of(folder).entries()
    names = sorted({name for key in keys if _NAME.fullmatch(name := key.partition("/")[0])})
    return [(join(folder, name), f"{name}/{MANIFEST}" in keys) for name in names]


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return _described(path.name, data)


def _described(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_killers(run: RunFolder) -> Killers:
    """Samples that the ledger knows to kill their decoder; a resumed run does not decode them again."""
    newest = latest_valid(run.checkpoints)
    if newest is None:
        return {}
    if isinstance(newest, Path) and (newest / _OLD_LEDGER).is_file():
        return killers_among(Ledger.from_bytes((newest / _OLD_LEDGER).read_bytes()).events())
    with contextlib.suppress(FileNotFoundError):
        ledger = run.readable_ledger()
        return killers_among(read_events(ledger)) if ledger.is_dir() else {}
    return {}
