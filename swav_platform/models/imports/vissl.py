"""VISSL: trunk and heads apart, `_feature_blocks.` before the trunk's names (Goyal et al. 2021)."""

from __future__ import annotations

from typing import Any

from swav_platform.models.imports.parts import Parts, at, below, split, tensors_in

_PREFIX = "_feature_blocks."


def parts(tree: Any) -> Parts | None:
    """A checkpoint with `classy_state_dict`, or the state of its trunk alone. None for other names."""
    model = at(tree, "classy_state_dict", "base_model", "model")
    tensors = (
        tensors_in(at(model, "trunk")) if model is not None else tensors_in(at(tree, "model_state_dict")) or tensors_in(tree)
    )
    if tensors is None or not all(name.startswith(_PREFIX) for name in tensors):
        return None
    heads = tensors_in(at(model, "heads")) or {}
    numbered = sorted({name.partition(".")[0] for name in heads})
    first = below(heads, f"{numbered[0]}.") if numbered else {}
    others = tuple(f"heads.{name}" for name in heads if not name.startswith(f"{numbered[0]}."))
    strange, head, prototypes, _ = split(first, "projection_head.", ("prototypes",), ())
    out = tuple(f"heads.{numbered[0]}.{name}" for name in strange)
    return Parts("vissl", below(tensors, _PREFIX), head, prototypes, out + others)
