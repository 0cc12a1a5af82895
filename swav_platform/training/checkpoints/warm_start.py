"""Weights to start from: another run's, torchvision's, or those published with SwAV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from swav_platform.errors import UsageError, UserError

_PREFIXES = ("module.", "encoder.", "backbone.")
_HEADS = ("fc.", "projection_head.", "prototypes.", "head.", "heads.", "momentum.", "predictor.")


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Gives `encoder` the weights in `path`: a .safetensors file, a .pth file of tensors, or the folder of a model package.

    Names are torchvision's, bare or behind `module.`, `encoder.` or `backbone.`; weights of heads are left out. Every weight of the
    encoder must be there in its shape. Raises UsageError for a file that is not there, UserError for one that does not fit.
    """
    found = {_bare(name): t for name, t in _read(path).items()}
    wanted = encoder.state_dict()
    needed = {name: t for name, t in wanted.items() if not name.endswith("num_batches_tracked")}
    missing = [name for name in needed if name not in found]
    other = [name for name, t in needed.items() if name in found and found[name].shape != t.shape]
    strange = [name for name in found if name not in wanted and not name.startswith(_HEADS)]
    if missing or other or strange:
        kinds = {"missing": missing, "of another shape": other, "not the encoder's": strange}
        said = "; ".join(f"{len(names)} {kind}, as {names[0]}" for kind, names in kinds.items() if names)
        raise UserError(
            f"The weights in {path} (model.init) do not fit the encoder: {said}. Take the model.name and model.stem that they were made "
            f"with, or other weights."
        )
    encoder.load_state_dict({name: found.get(name, t) for name, t in wanted.items()})


def _read(path: Path) -> Mapping[str, Tensor]:
    file = path / "encoder.safetensors" if path.is_dir() else path
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        tree: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(
            f"There are no weights at {file}; model.init must name a .safetensors or .pth file, or a package's folder."
        ) from None
    except Exception as error:  # the reader of .pth files raises whatever it stumbles over
        raise UserError(f"The weights in {file} (model.init) can't be read: {' '.join(str(error).split())[:300]}.") from error
    for key in ("state_dict", "model"):
        tree = tree.get(key, tree) if isinstance(tree, Mapping) else tree
    if not isinstance(tree, Mapping) or not all(isinstance(t, Tensor) for t in tree.values()):
        raise UserError(f"{file} (model.init) holds no mapping of names to tensors; save a state_dict of the encoder.")
    return tree


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
