"""torchvision's names without a prefix: torchvision and timm ResNets, the backbone file of DINO, VISSL's converted files.

Also `module.` before all names, as DataParallel writes them.
"""

from __future__ import annotations

from typing import Any

from swav_platform.models.imports.parts import Parts, at, below, split, tensors_in


def parts(tree: Any) -> Parts | None:
    """A state dict, also below `state_dict` or `model`. None for other names."""
    tensors = tensors_in(tree) or tensors_in(at(tree, "state_dict")) or tensors_in(at(tree, "model"))
    if tensors is None:
        return None
    if all(name.startswith("module.") for name in tensors):
        tensors = below(tensors, "module.")
    if "conv1.weight" not in tensors and "bn1.weight" not in tensors:
        return None
    trunk, _, _, out = split(tensors, "", (), ("fc.",))
    return Parts("torchvision", trunk, {}, (), out)
