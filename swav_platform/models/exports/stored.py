"""ONNX exports inside a package: onnx/encoder.PRECISION.onnx, described by onnx/PRECISION.json, which is written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from swav_platform.atomic import replacing, write_text
from swav_platform.errors import UserError


class Stored(NamedTuple):
    """An export that belongs to the package's weights."""

    path: Path
    variant: str  # 8 hex digits that identify the file
    cosine: float  # smallest cosine to float32 features when it was made, of images that calibration did not see
    probe: np.ndarray  # float32 [n, D]: what it computed from `reference.probe` on the machine that made it


def store(folder: Path, precision: str, content: bytes, *, model: str, cosine: float, probe: np.ndarray) -> Path:
    """Stores an export in the package `folder` and returns its path. model: the digest of the package."""
    target, described = _places(folder, precision)
    described.unlink(missing_ok=True)  # first, so that it never describes another file
    with replacing(target) as aside:
        aside.write_bytes(content)
    told = {
        "format": 1,
        "model": model,
        "sha256": hashlib.sha256(content).hexdigest(),
        "cosine": round(cosine, 6),
        "probe": np.round(probe.astype(np.float64), 5).tolist(),
    }
    write_text(described, json.dumps(told))
    return target


def stored(folder: Path, precision: str, model: str) -> Stored | None:
    """The package's export, None if there is none. Raises UserError if it is damaged or was made from other weights."""
    target, described = _places(folder, precision)
    if not described.is_file():
        return None
    try:
        told = json.loads(described.read_bytes())
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        if told["format"] != 1 or told["sha256"] != digest:
            raise ValueError(f"{target.name} is not the file that {described.name} describes")
        if told["model"] != model:
            raise ValueError(f"it was made from the model {told['model']}, not from {model}")
        return Stored(target, digest[:8], float(told["cosine"]), np.array(told["probe"], np.float32))
    except (OSError, ValueError, KeyError, TypeError) as error:
        option = " --int8" if precision == "int8" else ""
        raise UserError(
            f"The {precision} encoder in {target.parent} can't be used ({error}). Export it again with "
            f"`swav export RUN --to onnx{option}`."
        ) from error


def _places(folder: Path, precision: str) -> tuple[Path, Path]:
    return folder / "onnx" / f"encoder.{precision}.onnx", folder / "onnx" / f"{precision}.json"
