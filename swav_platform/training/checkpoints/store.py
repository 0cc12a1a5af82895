"""Checkpoint files: `step-000001234/` with three safetensors files, ledger.parquet, state.json and MANIFEST.json.

The manifest is written last. A checkpoint is valid only if its files match the manifest, so a crash during a write leaves the previous
checkpoint as the newest valid one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from swav_platform.atomic import cure
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.samples import Killers
from swav_platform.errors import UserError
from swav_platform.rows.isolation import killers_among

MANIFEST = "MANIFEST.json"
log = logging.getLogger("swav")

_NAME = re.compile(r"step-\d{9}")


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after `steps` finished steps."""

    steps: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    method: Mapping[str, Tensor]
    ledger: bytes
    state: Mapping[str, Any]  # JSON


def save(folder: Path, snapshot: Snapshot) -> Path:
    """Writes `folder`/step-…, flushed to disk, and returns its path. Replaces an older or incomplete checkpoint of that name.

    Raises UserError when the disk is full or the folder is not writable; earlier checkpoints are not affected.
    """
    path = folder / f"step-{snapshot.steps:09d}"
    try:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        files = [
            _write(path / "model.safetensors", _pack(snapshot.model)),
            _write(path / "optimizer.safetensors", _pack(snapshot.optimizer)),
            _write(path / "method.safetensors", _pack(snapshot.method)),
            _write(path / "ledger.parquet", snapshot.ledger),
            _write(path / "state.json", json.dumps({"format": 1, "steps": snapshot.steps, **snapshot.state}).encode()),
        ]
        _sync(path)
        _write(path / f"{MANIFEST}.part", json.dumps({"format": 1, "files": files}, indent=1).encode())
        os.replace(path / f"{MANIFEST}.part", path / MANIFEST)
        _sync(path)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise UserError(
            f"The checkpoint {path} can't be written ({error.strerror or error}): {cure(error)}, then resume with --resume. "
            f"Earlier checkpoints are not affected; train.keep_checkpoints sets how many are kept."
        ) from error
    return path


def is_valid(path: Path) -> bool:
    """Whether the manifest exists and every file has the size and SHA-256 in it."""
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
        return len(files) > 0 and all(
            (path / f["name"]).stat().st_size == f["size"] and _sha256(path / f["name"]) == f["sha256"] for f in files
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def steps_of(path: Path) -> int:
    """Number of finished steps, from the folder's name."""
    return int(path.name.removeprefix("step-"))


def latest_valid(folder: Path) -> Path | None:
    """The newest valid checkpoint in `folder`, or None. Skips damaged and incomplete checkpoints with a warning.

    Raises UserError if all complete checkpoints are damaged, so that a run does not restart silently from step 0.
    """
    damaged = []
    for path in reversed(_all(folder)):
        if is_valid(path):
            return path
        log.warning("Skipping %s: it is incomplete or damaged.", path)
        if (path / MANIFEST).exists():
            damaged.append(str(path))
    if damaged:
        raise UserError(
            f"All checkpoints of this run are damaged: {', '.join(damaged)} differ from their manifests. Restore one from a copy, "
            f"or delete {folder} to restart the run from scratch."
        )
    return None


def load(path: Path) -> Snapshot:
    """Reads a valid checkpoint into host memory."""
    state = json.loads((path / "state.json").read_bytes())
    model, optimizer, method = (
        safetensors.torch.load_file(path / f"{name}.safetensors") for name in ("model", "optimizer", "method")
    )
    return Snapshot(int(state["steps"]), model, optimizer, method, (path / "ledger.parquet").read_bytes(), state)


def prune(folder: Path, keep: int) -> None:
    """Deletes every checkpoint older than the newest `keep` with a manifest, including incomplete ones."""
    kept = [path for path in _all(folder) if (path / MANIFEST).exists()][-keep:]
    for path in _all(folder):
        if kept and path < kept[0]:
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that an interrupted deletion leaves no valid checkpoint
            shutil.rmtree(path, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"name": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_killers(folder: Path) -> Killers:
    """Samples that the newest checkpoint knows to kill their decoder; a resumed run does not decode them again."""
    newest = latest_valid(folder)
    return {} if newest is None else killers_among(Ledger.read(newest / "ledger.parquet").events())
