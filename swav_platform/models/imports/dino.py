"""DINO ResNet (Caron et al. 2021): the teacher of a full checkpoint, `backbone.` before torchvision's names.

The head has three layers and a weight-normalised last one, which is another form than ours; it is left out.
"""

from __future__ import annotations

from typing import Any

from swav_platform.models.imports.parts import Parts, at, split, tensors_in


def parts(tree: Any) -> Parts | None:
    """A full checkpoint with `teacher`. None for other names; the file of the backbone alone has torchvision's names."""
    tensors = tensors_in(at(tree, "teacher"))
    if tensors is None:
        return None
    bare = {name.removeprefix("module."): t for name, t in tensors.items()}
    if not all(name.startswith(("backbone.", "head.")) for name in bare):
        return None
    trunk, _, _, out = split(bare, "", (), ("head.",))
    return Parts("dino", {name.removeprefix("backbone."): t for name, t in trunk.items()}, {}, (), out, "Apache-2.0")
