"""Exports a package as one folder that another framework loads: config.json, model.safetensors, and a model card."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from swav_platform.errors import UsageError, UserError
from swav_platform.models.encoders import TIMM
from swav_platform.models.exports.frameworks import check, config_of
from swav_platform.models.exports.names import NAMES
from swav_platform.models.exports.onnx import write_onnx
from swav_platform.models.package import Package, load_package, package_digest
from swav_platform.models.runtimes.onnx_session import onnx_runtime

TARGETS = ("torchvision", "timm", "transformers", "torch-export", "onnx", "detectron2", "mmdet")
SAME = 0.99999  # cosine that an export needs
_MARK = "swav-export.json"  # tells an export, which may be replaced, from another folder


def export_folder(package: Path, target: str, folder: Path, card: Callable[[Mapping[str, Any]], str]) -> dict[str, Any]:
    """Writes the encoder of a package for `target` and returns the report of `swav export`.

    card: from the report to README.md. Raises UserError if the framework has no such encoder, or the written weights compute other
    features than the package: the cosine on random inputs has to reach 0.99999. Raises UsageError for a folder of something else.
    """
    if folder.exists() and not (folder / _MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an export, so it is not replaced. Choose another folder with --folder.")
    loaded = load_package(package)
    check(target, loaded.meta["model"])
    licence = str(loaded.meta.get("source", {}).get("licence", "unknown"))
    weights = _weights(target, loaded)
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        (aside / "model.safetensors").write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
        for name, content in config_of(target, loaded.meta, licence).items():
            (aside / name).write_text(json.dumps(content, indent=1))
        _more(target, loaded, weights, aside)
        cosine = _cosine(target, loaded, aside)
        if cosine < SAME:
            raise UserError(f"The export computes other features than the package: cosine {cosine:.6f}. Nothing was written.")
        report = {
            "format": target,
            "out": str(folder),
            "model": package_digest(package),
            "cosine": cosine,
            "weights": len(weights),
            "bytes": sum(file.stat().st_size for file in aside.iterdir()),
        }
        (aside / _MARK).write_text(json.dumps({"format": 1, "target": target, "model": report["model"]}))
        (aside / "README.md").write_text(card(report), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def _weights(target: str, package: Package) -> dict[str, Tensor]:
    name = NAMES.get(target)
    renamed = name is not None and not str(package.meta["model"]["name"]).startswith(TIMM)
    state = package.encoder.state_dict()
    return {name(key) if renamed and name else key: t.clone(memory_format=torch.contiguous_format) for key, t in state.items()}


def _more(target: str, package: Package, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Files of the kinds that frameworks without safetensors read."""
    if target == "detectron2":
        arrays = {name: t.numpy() for name, t in weights.items() if not name.endswith("num_batches_tracked")}
        content = {"model": arrays, "__author__": "swav-platform", "matching_heuristics": True}
        (folder / "model.pkl").write_bytes(pickle.dumps(content))
    elif target == "mmdet":
        torch.save({"state_dict": dict(weights)}, folder / "model.pth")
    elif target == "onnx":
        write_onnx(package.encoder, int(package.meta["input_size"]), folder / "model.onnx")
    elif target == "torch-export":
        size = int(package.meta["input_size"])
        example = torch.zeros(2, 3, size, size)
        shapes = ({0: torch.export.Dim("n", min=1)},)
        encoder = package.encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        program = torch.export.export(encoder, (example,), dynamic_shapes=shapes)
        torch.export.save(program, folder / "model.pt2")


def _cosine(target: str, package: Package, folder: Path) -> float:
    """Smallest cosine of features from the written files to those of the package, of three random inputs."""
    size = int(package.meta["input_size"])
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    written = safetensors.torch.load_file(folder / "model.safetensors")
    with torch.inference_mode():
        wanted = package.encoder(images).clone()
        if target == "onnx":
            got = torch.from_numpy(onnx_runtime(folder / "model.onnx", precision="fp32")(images.numpy()))
        elif target == "torch-export":
            got = torch.export.load(folder / "model.pt2").module()(images)
        else:
            state = package.encoder.state_dict()
            renamed = dict(zip(_weights(target, package), state, strict=True))
            package.encoder.load_state_dict({renamed[name]: t for name, t in written.items()})
            got = package.encoder(images)
    return round(min(1.0, float(F.cosine_similarity(got.double(), wanted.double()).min())), 8)
