"""Loads initial weights: the encoder's of another run, of torchvision, or as published with SwAV; and heads of a model package."""

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
    """Loads the weights in `path` into `encoder`. path: a .safetensors file, a .pth file, or the folder of a model package.

    Names are those of torchvision, optionally with the prefix `module.`, `encoder.` or `backbone.`. Weights of heads are ignored. Every
    weight of the encoder must be present in its shape. Raises UsageError for a missing file, UserError for weights that do not fit.
    """
    found = {_bare(name): t for name, t in _read(path).items()}
    wanted = encoder.state_dict()
    needed = {name: t for name, t in wanted.items() if not name.endswith("num_batches_tracked")}
    missing = [name for name in needed if name not in found]
    other = [name for name, t in needed.items() if name in found and found[name].shape != t.shape]
    strange = [name for name in found if name not in wanted and not name.startswith(_HEADS)]
    if missing or other or strange:
        kinds = {"missing": missing, "of another shape": other, "unknown to the encoder": strange}
        said = "; ".join(f"{len(names)} {kind}, such as {names[0]}" for kind, names in kinds.items() if names)
        raise UserError(
            f"The weights in {path} (model.init) do not fit the encoder: {said}. Set model.name and model.stem to those of the weights, "
            f"or choose other weights."
        )
    encoder.load_state_dict({name: found.get(name, t) for name, t in wanted.items()})


@torch.no_grad()
def load_heads(network: nn.Module, init: str | None) -> None:
    """Loads projection head and prototypes of the model package `init` into a training network, also into its momentum copy.

    A network without prototypes takes the head alone. Raises UsageError if `init` is no folder, UserError for heads that do not fit.
    """
    file = Path(init or "") / "head.safetensors"
    if init is None or not file.is_file():
        raise UsageError(
            f"model.init_heads needs heads, but model.init={init} is not a model package. Import the weights with `swav import`."
        )
    found = safetensors.torch.load_file(file)
    head = {name.removeprefix("projection."): t for name, t in found.items() if name.startswith("projection.")}
    own: Any = network
    wanted = own.projection_head.state_dict()
    prototypes = getattr(own, "prototypes", None)
    _check_head(
        "projection head", {name: t.shape for name, t in head.items()}, {name: t.shape for name, t in wanted.items()}, init
    )
    if prototypes is not None:
        shape = prototypes.weight.shape
        _check_head("prototypes", {"weight": found["prototypes"].shape}, {"weight": shape}, init)
        prototypes.weight.copy_(found["prototypes"])
    own.projection_head.load_state_dict(head)
    if (momentum := getattr(own, "momentum", None)) is not None:
        momentum[1].load_state_dict(head)


def _check_head(what: str, given: Mapping[str, Any], wanted: Mapping[str, Any], init: str) -> None:
    if given != wanted:
        differ = next(name for name in (*wanted, *given) if given.get(name) != wanted.get(name))
        sides = [list(side[differ]) if differ in side else "absent" for side in (given, wanted)]
        raise UserError(
            f"The {what} of {init} does not fit: {differ} is {sides[0]} there and {sides[1]} in this configuration. Set "
            f"model.projection_hidden, model.projection_dim, model.projection_norm and method.prototypes to those of its model.json, "
            f"or set model.init_heads=false."
        )


def _read(path: Path) -> Mapping[str, Tensor]:
    file = path / "encoder.safetensors" if path.is_dir() else path
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        tree: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(
            f"There are no weights at {file}; set model.init to a .safetensors or .pth file, or to the folder of a model package."
        ) from None
    except Exception as error:  # torch.load raises many types of errors
        raise UserError(f"The weights in {file} (model.init) can't be read: {' '.join(str(error).split())[:300]}.") from error
    for key in ("state_dict", "model"):
        tree = tree.get(key, tree) if isinstance(tree, Mapping) else tree
    if not isinstance(tree, Mapping) or not all(isinstance(t, Tensor) for t in tree.values()):
        raise UserError(f"{file} (model.init) is not a mapping of names to tensors; save the state_dict of the encoder.")
    return tree


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
