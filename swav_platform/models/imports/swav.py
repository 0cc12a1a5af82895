"""SwAV, DeepCluster-v2 and SeLa-v2 as published by Caron et al. 2020: `module.` before torchvision's names, head and prototypes.

DeepCluster-v2 and SeLa-v2 have several heads of prototypes: `prototypes.prototypes0.weight` … The head of RN50w5 has no batch norm.
"""

from __future__ import annotations

from typing import Any

from swav_platform.models.imports.parts import Parts, at, below, split, tensors_in

_LICENCE = "CC-BY-NC-4.0"


def parts(tree: Any) -> Parts | None:
    """A file `NAME_pretrain.pth.tar`, or a training checkpoint with `state_dict`. None for other names."""
    tensors = tensors_in(at(tree, "state_dict")) or tensors_in(tree)
    if tensors is None or not all(name.startswith("module.") for name in tensors):
        return None
    bare = below(tensors, "module.")
    if not any(name.startswith(("projection_head.", "prototypes.")) for name in bare):
        return None
    trunk, head, prototypes, out = split(bare, "projection_head.", ("prototypes.",), ())
    method = "deepcluster" if len(prototypes) > 1 else "swav"
    return Parts("swav", trunk, head, prototypes, out, _LICENCE, method)
