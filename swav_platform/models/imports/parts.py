"""What a kind of published file holds, under torchvision's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """Weights of one file, without prefixes.

    kind: the publisher's code, for the model card. trunk: torchvision's names. head: tensors of the projection head, `0.weight` …
    prototypes: [K, D] of each head, in order. left_out: names in the file that no package can hold, such as those of a classifier.
    """

    kind: str
    trunk: Tensors
    head: Tensors
    prototypes: tuple[Tensor, ...]
    left_out: tuple[str, ...]
    licence: str | None = None  # as published with the code; None if unknown
    method: str = "swav"


def tensors_in(tree: Any) -> Tensors | None:
    """The tree itself if it maps names to tensors, and nothing else; else None."""
    if not isinstance(tree, Mapping) or not tree:
        return None
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in tree.items()):
        return None
    return dict(tree)


def below(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def at(tree: Any, *path: str) -> Any:
    """tree[path[0]][path[1]] …; None if there is no such entry."""
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree


def split(tensors: Mapping[str, Tensor], head: str, prototypes: Sequence[str], left_out: Sequence[str]) -> tuple[Any, ...]:
    """trunk, head, prototypes, left_out of `Parts`: tensors by the prefixes of their names.

    prototypes: prefixes of the heads' weights; several heads are numbered in their names. left_out: prefixes.
    """
    trunk, found_head, tops, out = {}, {}, {}, []
    for name, value in tensors.items():
        if head and name.startswith(head):
            found_head[name.removeprefix(head)] = value
        elif name.startswith(tuple(prototypes)):
            tops[name] = value
        elif name.startswith(tuple(left_out)):
            out.append(name)
        else:
            trunk[name] = value
    ordered = sorted(tops, key=lambda name: (len(name), name))  # prototypes10 after prototypes9
    return trunk, found_head, tuple(tops[name] for name in ordered), tuple(out)
