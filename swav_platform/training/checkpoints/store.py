"""Checkpoints: `step-000001234/` with three safetensors files, ledger.parquet, state.json and, last of all, MANIFEST.json.

Without a manifest that fits its files a checkpoint does not exist, so a crash at any moment leaves the one before it.
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
from swav_platform.errors import UserError

MANIFEST = "MANIFEST.json"
log = logging.getLogger("swav")

_NAME = re.compile(r"step-\d{9}")


@dataclass(frozen=True)
class Snapshot:
    """All that the step after `steps` finished ones needs."""

    steps: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    method: Mapping[str, Tensor]
    ledger: bytes
    state: Mapping[str, Any]  # JSON


def save(folder: Path, snapshot: Snapshot) -> Path:
    """Writes `folder`/step-…, flushed to the disk; returns its path. What half-written or older thing has its name goes first.

    Raises UserError when the disk is full or the folder can't be written to; earlier checkpoints stay as they are.
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
            f"The checkpoint {path} can't be written ({error.strerror or error}): {cure(error)}, then go on with --resume. "
            f"Earlier checkpoints are untouched; train.keep_checkpoints says how many are kept."
        ) from error
    return path


def is_valid(path: Path) -> bool:
    """Whether the manifest is there and every file has the size and the sha256 that it names."""
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
        return len(files) > 0 and all(
            (path / f["name"]).stat().st_size == f["size"] and _sha256(path / f["name"]) == f["sha256"] for f in files
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def steps_of(path: Path) -> int:
    """Finished steps, from the name."""
    return int(path.name.removeprefix("step-"))


def latest_valid(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`; damaged and half-written ones are passed over, with a warning.

    Raises UserError if there are some that were whole once, but none any more: a run is not to be lost in silence.
    """
    damaged = []
    for path in reversed(_all(folder)):
        if is_valid(path):
            return path
        log.warning("%s is half-written or damaged and is passed over.", path)
        if (path / MANIFEST).exists():
            damaged.append(str(path))
    if damaged:
        raise UserError(
            f"No checkpoint of this run is whole any more: {', '.join(damaged)} differ from their manifests. Bring one back from a "
            f"copy, or delete {folder} to start the run anew."
        )
    return None


def load(path: Path) -> Snapshot:
    """A checkpoint that `is_valid`, in host memory."""
    state = json.loads((path / "state.json").read_bytes())
    model, optimizer, method = (
        safetensors.torch.load_file(path / f"{name}.safetensors") for name in ("model", "optimizer", "method")
    )
    return Snapshot(int(state["steps"]), model, optimizer, method, (path / "ledger.parquet").read_bytes(), state)


def prune(folder: Path, keep: int) -> None:
    """Takes away all but the newest `keep` checkpoints that have a manifest, and what is older than these."""
    kept = [path for path in _all(folder) if (path / MANIFEST).exists()][-keep:]
    for path in _all(folder):
        if kept and path < kept[0]:
            (path / MANIFEST).unlink(missing_ok=True)  # first, so that it is never half there
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
