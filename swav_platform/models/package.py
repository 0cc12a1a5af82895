"""A model package: the folder that is registered, served and evaluated. Weights in safetensors, the rest in model.json."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from swav_platform import config
from swav_platform.errors import UserError
from swav_platform.images.views.photometric import MEAN, STD
from swav_platform.models.encoders import build_encoder
from swav_platform.models.heads import projection_head

_FILES = ("encoder.safetensors", "head.safetensors", "model.json")


@dataclass(frozen=True)
class Package:
    """encoder: [n, 3, H, W] to [n, feature_dim]; projection: on to [n, projection_dim], not yet of unit length;
    prototypes: [K, projection_dim], unit length, K = 0 of a method without any. In evaluation mode, float32, on the CPU."""

    encoder: nn.Module
    projection: nn.Module
    prototypes: Tensor
    meta: dict[str, Any]


def save_package(
    folder: Path,
    weights: Mapping[str, Tensor],
    settings: config.Config,
    *,
    name: str,
    run: str,
    run_id: str | None,
    index_digest: str,
    codec: str,
) -> Path:
    """Writes `weights` (a training network's state: encoder.*, projection_head.*, perhaps prototypes.weight) as the package `folder`.

    Written aside and renamed, so a package is whole or not there; one that was there is replaced. Returns `folder`.
    """
    none = torch.zeros(0, settings.model.projection_dim)
    prototypes = F.normalize(weights.get("prototypes.weight", none).float(), dim=1)
    head = _part(weights, "projection_head.", "projection.") | {"prototypes": prototypes}
    encoder = _part(weights, "encoder.", "")
    meta = {
        "format": 1,
        "name": name,
        "model": settings.model.model_dump(mode="json"),
        "prototypes": len(prototypes),
        "projection_dim": settings.model.projection_dim,
        "feature_dim": weights["projection_head.0.weight"].shape[1],
        "input_size": next(iter(settings.views.values())).size,
        "mean": MEAN,
        "std": STD,
        "temperature": settings.method.temperature,
        "epsilon": settings.method.epsilon,
        "run": run,
        "run_id": run_id,
        "index_digest": index_digest,
        "config_digest": settings.digest(),
        "codec": codec,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    (aside / "encoder.safetensors").write_bytes(safetensors.torch.save(encoder))
    (aside / "head.safetensors").write_bytes(safetensors.torch.save(head))
    (aside / "model.json").write_text(json.dumps(meta, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    return folder


def load_package(folder: Path) -> Package:
    """Raises UserError for a folder that is no package, or a damaged one, or one of another format."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} is not a model package: {', '.join(missing)} is not there. Name the folder `model` of a finished run."
        )
    try:
        meta = json.loads((folder / "model.json").read_bytes())
        if meta["format"] != 1:
            raise ValueError(f"it has format {meta['format']}, this version reads format 1")
        model = config.Model.model_validate(meta["model"])
        encoder = build_encoder(model)
        encoder.load_state_dict(safetensors.torch.load_file(folder / "encoder.safetensors"))
        head = safetensors.torch.load_file(folder / "head.safetensors")
        projection = projection_head(meta["feature_dim"], model.projection_hidden, model.projection_dim)
        projection.load_state_dict(_part(head, "projection.", ""))
        return Package(encoder.eval(), projection.eval(), head["prototypes"], meta)
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"The model package {folder} can't be loaded ({type(error).__name__}: {error}); it is damaged or of another version. "
            f"Delete summary.json of its run and resume the run with --resume: that exports it again."
        ) from error


def package_digest(folder: Path) -> str:
    """Names what the package computes: 16 hex digits of its weights and settings, the same wherever it lies."""
    meta = json.loads((folder / "model.json").read_bytes())
    meta.pop("created", None)  # the same weights may be exported twice
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in _FILES:
        if name != "model.json":
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def preprocess(image: np.ndarray, input_size: int) -> Tensor:
    """uint8 [H, W, 3] to float32 [3, input_size, input_size]: shorter side to 8/7 of it (to it, up to 64 px), centre crop.

    As published for evaluation (256 and 224); small images keep what little they have.
    """
    target = input_size if input_size <= 64 else round(input_size * 8 / 7)
    height, width = image.shape[:2]
    scale = target / min(height, width)
    size = (max(input_size, round(width * scale)), max(input_size, round(height * scale)))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - input_size) // 2, (size[1] - input_size) // 2
    cropped = np.asarray(resized.crop((left, top, left + input_size, top + input_size)), dtype=np.float32)
    normalised = (cropped / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def _part(weights: Mapping[str, Tensor], prefix: str, becomes: str) -> dict[str, Tensor]:
    """Copies: safetensors refuses tensors that share memory."""
    return {
        becomes + name.removeprefix(prefix): t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, t in weights.items()
        if name.startswith(prefix)
    }
