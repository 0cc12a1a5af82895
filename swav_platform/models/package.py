"""A model package: the folder that is registered, served and evaluated. Weights are safetensors, metadata is model.json."""

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
from swav_platform.models.reference import save_reference

_FILES = ("encoder.safetensors", "head.safetensors", "model.json")


@dataclass(frozen=True)
class Package:
    """A loaded model package: modules in evaluation mode, float32, on the CPU."""

    encoder: nn.Module  # [n, 3, H, W] to [n, feature_dim]
    projection: nn.Module  # [n, feature_dim] to [n, projection_dim], not normalised
    prototypes: Tensor  # [K, projection_dim], unit length; K = 0 for a method without prototypes
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
    """Writes the weights of a run as the package `folder`, replaces an existing one, and returns `folder`.

    weights: state of a training network, with encoder.*, projection_head.* and, if the method has them, prototypes.weight.
    """
    none = torch.zeros(0, settings.model.projection_dim)
    prototypes = weights.get("prototypes.weight", none)
    feature_dim = int(weights["projection_head.0.weight"].shape[1])
    encoder, head = _part(weights, "encoder.", ""), _part(weights, "projection_head.", "")
    meta = package_meta(settings, name, feature_dim, settings.model.projection_dim, len(prototypes), codec) | {
        "run": run,
        "run_id": run_id,
        "index_digest": index_digest,
    }
    return write_package(folder, encoder, head, prototypes, meta)


def package_meta(
    settings: config.Config, name: str, feature_dim: int, projection_dim: int, prototypes: int, codec: str
) -> dict[str, Any]:
    """The content of model.json, without where the weights come from."""
    return {
        "format": 1,
        "name": name,
        "model": settings.model.model_dump(mode="json"),
        "prototypes": prototypes,
        "projection_dim": projection_dim,
        "feature_dim": feature_dim,
        "input_size": next(iter(settings.views.values())).size,
        "mean": MEAN,
        "std": STD,
        "temperature": settings.method.temperature,
        "epsilon": settings.method.epsilon,
        "run": "",
        "run_id": None,
        "index_digest": "",
        "config_digest": settings.digest(),
        "codec": codec,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_package(
    folder: Path,
    encoder: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    prototypes: Tensor,
    meta: Mapping[str, Any],
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes a package, replaces an existing one, and returns `folder`.

    encoder, head: state dicts; an empty head stands for features that are their own projections. prototypes: [K, projection_dim].
    more: files beside those of every package. All is written to a temporary folder and renamed, so `folder` never holds a part.
    """
    weights = {f"projection.{name}": t for name, t in head.items()}
    weights["prototypes"] = F.normalize(prototypes.detach().float(), dim=1)
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    (aside / "encoder.safetensors").write_bytes(safetensors.torch.save(_part(encoder, "", "")))
    (aside / "head.safetensors").write_bytes(safetensors.torch.save(_part(weights, "", "")))
    (aside / "model.json").write_text(json.dumps(meta, indent=1))
    for name, content in (more or {}).items():
        (aside / name).write_bytes(content)
    save_reference(aside, load_package(aside).encoder, int(meta["input_size"]))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    return folder


def load_package(folder: Path) -> Package:
    """Loads the package `folder`. Raises UserError if it is not a package, is damaged, or has another format."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} is not a model package: {', '.join(missing)} is missing. Name the folder `model` of a finished run."
        )
    try:
        meta = json.loads((folder / "model.json").read_bytes())
        if meta["format"] != 1:
            raise ValueError(f"format {meta['format']}; this version reads format 1")
        model = config.Model.model_validate(meta["model"])
        encoder = build_encoder(model)
        encoder.load_state_dict(_weights(folder / "encoder.safetensors"))
        head = _weights(folder / "head.safetensors")
        projection = _projection(_part(head, "projection.", ""), meta["feature_dim"], model)
        return Package(encoder.eval(), projection.eval(), head["prototypes"], meta)
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"The model package {folder} can't be loaded ({type(error).__name__}: {error}). It is damaged or from another "
            f"version. To export it again, delete summary.json of its run and resume the run with --resume."
        ) from error


def _weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises ValueError for another precision than float32: it would be widened in silence."""
    found = safetensors.torch.load_file(path)
    for name, tensor in found.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"{name} in {path.name} is stored as {tensor.dtype}; a package has float32")
    return found


def _projection(weights: Mapping[str, Tensor], feature_dim: int, model: config.Model) -> nn.Module:
    """The projection head with its weights. Imported weights may have none: then features are their own projections."""
    if not weights:
        return nn.Identity()
    head = projection_head(feature_dim, model.projection_hidden, model.projection_dim, model.projection_norm)
    head.load_state_dict(dict(weights))
    return head


def package_digest(folder: Path) -> str:
    """Identifies what the package computes: 16 hex digits from its weights and metadata, independent of its location."""
    meta = json.loads((folder / "model.json").read_bytes())
    for name in ("created", "source"):  # two exports or imports of the same weights have the same digest
        meta.pop(name, None)
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in _FILES:
        if name != "model.json":
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def preprocess(image: np.ndarray, input_size: int) -> Tensor:
    """Converts uint8 [H, W, 3] to normalised float32 [3, input_size, input_size] by resizing and a centre crop.

    The shorter side is resized to 8/7 of `input_size`, as published for evaluation (256 and 224). Up to 64 px it is resized to
    `input_size` itself, so that small images lose nothing at the border.
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
    """Copies of the weights under `prefix`, renamed. Copies, because safetensors refuses tensors that share memory."""
    return {
        becomes + name.removeprefix(prefix): t.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, t in weights.items()
        if name.startswith(prefix)
    }
