"""From a published file to a model package that everything else takes."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swav_platform import config
from swav_platform.errors import UsageError, UserError
from swav_platform.images.decoding.decode import codec_fingerprint
from swav_platform.models.imports import dino, mean_shift, parity, swav, torchvision, vissl
from swav_platform.models.imports.parts import Parts, Tensors
from swav_platform.models.imports.read import local_file, read, sha256
from swav_platform.models.imports.trunk import recognise
from swav_platform.models.package import load_package, package_digest, package_meta, write_package
from swav_platform.models.reference import load_reference

_KINDS: tuple[Callable[[Any], Parts | None], ...] = (vissl.parts, dino.parts, mean_shift.parts, swav.parts, torchvision.parts)
_PARITY_SIZE = 64  # pixels of the stored inputs
_HEAD_FORMS = {("0", "1", "3"): "batch", ("0", "2"): "none", ("0", "3"): "none"}  # layers with weights: normalisation


def import_weights(
    source: str,
    to: Path | None = None,
    *,
    name: str | None = None,
    licence: str | None = None,
    digest: str | None = None,
    stem_stride: int | None = None,
    input_size: int = 224,
) -> dict[str, Any]:
    """Writes the package of a published file and returns the report of `swav import`.

    source: path or URL. to: the package's folder; `NAME-package` in the current folder by default. digest: the file's sha256, if known.
    stem_stride: of weights with a 3x3 first convolution, which does not tell it. Raises UserError for a file that does not match.
    """
    name = name or _name_of(source)
    folder = to or Path(f"{name}-package")
    if folder.exists() and not (folder / "model.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not a model package, so it is not replaced. Choose another folder with --to.")
    file = local_file(source)
    found = sha256(file)
    if digest and digest.lower() != found:
        raise UserError(f"{source} has the sha256 {found}, not {digest}. Download it again, or correct --sha256.")
    parts = recognised(read(file, source), source)
    model = _model(parts, source, stem_stride)
    head, left_out = _head(parts)
    model = _with_head(model, head)
    prototypes = (
        torch.cat([t.float() for t in parts.prototypes]) if parts.prototypes and head else torch.zeros(0, _dim(parts, head))
    )
    if not head:
        left_out += tuple(f"prototypes {list(t.shape)}" for t in parts.prototypes)
    meta = _meta(name, model, parts, head, prototypes, input_size) | {
        "source": {
            "file": source,
            "sha256": found,
            "kind": parts.kind,
            "licence": licence or parts.licence or "unknown",
            "left_out": list(left_out),
        }
    }
    more = {"README.md": _card(meta).encode()}
    with tempfile.TemporaryDirectory(dir=_existing_parent(folder), prefix=".import-") as scratch:
        aside = write_package(Path(scratch) / "package", _with_counters(parts.trunk), head, prototypes, meta, more)
        differs = _parity(aside, parts.trunk, model)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    return {
        "package": str(folder),
        "name": name,
        "kind": parts.kind,
        "encoder": model.name,
        "weights": len(parts.trunk),
        "projection_head": bool(head),
        "prototypes": len(prototypes),
        "left_out": list(left_out),
        "sha256": found,
        "licence": meta["source"]["licence"],
        "parity": differs,
        "digest": package_digest(folder),
    }


def recognised(tree: Any, file: str) -> Parts:
    """The parts of a file, by the names in it. Raises UserError if no kind of published file has such names."""
    for kind in _KINDS:
        if (parts := kind(tree)) is not None:
            return parts
    names = list(tree) if isinstance(tree, dict) else []
    inner = tree.get("state_dict", tree.get("model")) if isinstance(tree, dict) else None
    names = list(inner) if isinstance(inner, dict) and inner else names
    shown = ", ".join(str(name) for name in names[:3]) or f"a {type(tree).__name__}"
    raise UserError(
        f"{file} has no names of SwAV, DeepCluster-v2, SeLa-v2, VISSL, MSF, DINO or torchvision: it holds {shown}. "
        f"Rename its weights to torchvision's names, without a prefix, and import that file."
    )


def _model(parts: Parts, file: str, stem_stride: int | None) -> config.Model:
    name, stem = recognise(parts.trunk, file)
    if stem == "small" and stem_stride is None:
        raise UserError(
            f"{file} has a 3x3 first convolution, and weights do not tell its stride. Add --stem-stride 1 or --stem-stride 2."
        )
    return config.Model.model_validate({"name": name, "stem": stem, "stem_stride": stem_stride or 1})


def _head(parts: Parts) -> tuple[Tensors, tuple[str, ...]]:
    """The projection head under our names, empty if there is none of our form; and what is left out."""
    layers = tuple(sorted({name.partition(".")[0] for name in parts.head}))
    fits = layers in _HEAD_FORMS and parts.head["0.weight"].shape[1] == _width(parts)
    if not fits:
        return {}, parts.left_out + tuple(f"projection_head.{name}" for name in parts.head)
    if _HEAD_FORMS[layers] == "none":  # linear, ReLU, linear
        return {re.sub(r"^[23]\.", "2.", name): t.float() for name, t in parts.head.items()}, parts.left_out
    head = {name: t if name.endswith("num_batches_tracked") else t.float() for name, t in parts.head.items()}
    head.setdefault("1.num_batches_tracked", torch.tensor(0))
    return head, parts.left_out


def _with_head(model: config.Model, head: Tensors) -> config.Model:
    if not head:
        return model
    norm = "batch" if "1.weight" in head else "none"
    last = head["3.weight" if norm == "batch" else "2.weight"]
    return model.model_copy(
        update={"projection_hidden": len(head["0.weight"]), "projection_dim": len(last), "projection_norm": norm}
    )


def _dim(parts: Parts, head: Tensors) -> int:
    return len(head["3.weight" if "1.weight" in head else "2.weight"]) if head else _width(parts)


def _width(parts: Parts) -> int:
    """Length of the trunk's features."""
    return int(max((t.shape[0] for name, t in parts.trunk.items() if name.startswith("layer4.") and t.dim()), default=0))


def _meta(name: str, model: config.Model, parts: Parts, head: Tensors, prototypes: Tensor, input_size: int) -> dict[str, Any]:
    views = {"large": config.ViewGroup(size=input_size, count=2, scale=(0.14, 1.0))}
    settings = config.Config(model=model, views=views)
    return package_meta(settings, name, _width(parts), _dim(parts, head), len(prototypes), codec_fingerprint())


def _existing_parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


def _parity(folder: Path, trunk: Tensors, model: config.Model) -> float:
    """Largest difference of a package's features from those that plain torch computes from the file, on the package's stored images.

    Raises UserError if they are not the same.
    """
    stored = load_reference(folder)
    assert stored is not None, "write_package writes it"
    images, weights = torch.from_numpy(stored[0]), {name: t.float() for name, t in trunk.items()}
    with torch.inference_mode():
        wanted = parity.plain_features(weights, images, model.stem, 2 if model.stem == "imagenet" else model.stem_stride)
    found = parity.difference(parity.features(load_package(folder).encoder, images), wanted)
    if not found <= parity.TOLERANCE:
        raise UserError(
            f"The package would compute other features than its file: they differ by {found:.1e} of the largest, with at most "
            f"{parity.TOLERANCE:.0e} expected. Nothing was imported; the file may hold values that are not finite."
        )
    return found


def _with_counters(trunk: Tensors) -> Tensors:
    """Float32 weights, with the counters of batch norms that older files lack."""
    found = {name: t if name.endswith("num_batches_tracked") else t.float() for name, t in trunk.items()}
    for name in [name for name in trunk if name.endswith("running_mean")]:
        found.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return found


def _name_of(source: str) -> str:
    """A model's name from a file's: letters, digits, `_`, `.` and `-`."""
    base = source.rstrip("/").rpartition("/")[2].partition("?")[0]
    stem = re.sub(r"(\.(pth|tar|pt|torch|bin|safetensors|pkl))+$", "", base)
    return re.sub(r"[^\w.-]", "-", stem).strip("._- ") or "imported"


def _card(meta: dict[str, Any]) -> str:
    source, model = meta["source"], meta["model"]
    left = ", ".join(source["left_out"][:8]) or "nothing"
    more = f" and {len(source['left_out']) - 8} more" if len(source["left_out"]) > 8 else ""
    rows = {
        "source": source["file"],
        "sha256": source["sha256"],
        "licence": source["licence"],
        "names of": source["kind"],
        "encoder": f"{model['name']}, stem {model['stem']}, {meta['feature_dim']} features",
        "prototypes": meta["prototypes"],
        "not imported": left + more,
    }
    lines = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"# {meta['name']}\n\nImported weights. Check the licence at the source before you use them.\n\n| | |\n|---|---|\n{lines}\n"
