"""Which ResNet the weights of a trunk belong to, from names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Size, Tensor

from swav_platform.errors import UserError
from swav_platform.models import resnet

_COUNTER = "num_batches_tracked"  # older files lack it, and nothing reads it


@lru_cache(64)
def shapes(name: str, stem: str) -> dict[str, Size]:
    """Names and shapes of a ResNet's tensors."""
    with torch.device("meta"):
        module = resnet.ResNet(resnet.SHAPES[name], stem, 1)
    return {key: t.shape for key, t in module.state_dict().items() if not key.endswith(_COUNTER)}


def recognise(trunk: Mapping[str, Tensor], file: str) -> tuple[str, str]:
    """Name and stem of the ResNet whose tensors are exactly these. Raises UserError that says what does not match."""
    if not trunk:
        raise UserError(f"{file} has heads but no trunk. Import the file of the whole network.")
    given = {name: t.shape for name, t in trunk.items() if not name.endswith(_COUNTER)}
    kinds = [(name, stem) for name in resnet.SHAPES for stem in ("imagenet", "small")]
    best = max(kinds, key=lambda kind: _agreement(given, shapes(*kind)))
    wanted = shapes(*best)
    missing = [name for name in wanted if name not in given]
    other = [
        f"{name} {list(given[name])}, not {list(wanted[name])}"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    strange = [name for name in given if name not in wanted]
    if missing or other or strange:
        kinds_of = {"missing": missing, "of another shape": other, "unknown": strange}
        said = "; ".join(f"{len(names)} {kind}, such as {names[0]}" for kind, names in kinds_of.items() if names)
        raise UserError(
            f"{file} does not fit any encoder: of the {len(wanted)} weights of the nearest one, {best[0]}, {said}. Nothing was "
            f"imported; use a file with the whole trunk of a ResNet."
        )
    return best


def _agreement(given: Mapping[str, Size], wanted: Mapping[str, Size]) -> int:
    """Equal names and shapes count most, then equal names; what only one side has counts against a candidate."""
    same = sum(given[name] == shape for name, shape in wanted.items() if name in given)
    named = sum(name in given for name in wanted)
    return 4 * same + 2 * named - len(wanted) - len(given)
