"""What `swav ledger` shows of a run's first epoch: copies, and images that look odd, with names and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swav_platform.config import ImagePolicy
from swav_platform.data.index.lookup import Index, IndexLine
from swav_platform.data.ledger.contents import Contents
from swav_platform.data.outages import Outages
from swav_platform.data.samples import ReadFailure, read_samples
from swav_platform.errors import UserError
from swav_platform.images.decode import thumbnail
from swav_platform.images.look import Look

EXAMPLES = 24
"""Pictures of each kind on a page."""

_SECONDS = 10.0  # to wait for a storage: a page without pictures is of use too


@dataclass(frozen=True)
class Group:
    """Images of one kind. name: `copies`, or a word of Look. total: number of images; `examples` are some of them, with captions."""

    name: str
    total: int
    examples: list[tuple[IndexLine, str]]


def copies(contents: Contents, index: Index) -> list[list[IndexLine]]:
    """Groups of images with equal bytes, largest first; excluded ones are left out."""
    groups = contents.groups
    lines = {line.number: line for line in index.lines(sorted(int(n) for group in groups for n in group))}
    found = [[lines[int(n)] for n in group if not lines[int(n)].excluded] for group in groups]
    return [group for group in found if len(group) > 1]


def odd(contents: Contents, index: Index) -> list[Group]:
    """Copies and odd-looking images, each kind with a few examples."""
    firsts = [(int(group[0]), f"{len(group):,} images have these bytes") for group in contents.groups[:EXAMPLES]]
    kinds = [("copies", contents.copied, firsts)] if firsts else []
    for look in Look:
        numbers = np.sort(contents.sample[contents.look & look != 0])
        if len(numbers):
            kinds.append((look.word, len(numbers), [(int(n), "") for n in numbers[:EXAMPLES]]))
    found = []
    for name, total, examples in kinds:
        lines = {line.number: line for line in index.lines(sorted({n for n, _ in examples}))}
        found.append(Group(name, total, [(lines[n], caption) for n, caption in examples if not lines[n].excluded]))
    return found


def pictures(lines: Sequence[IndexLine], policy: ImagePolicy) -> dict[int, bytes]:
    """Small JPEGs by sample number, of the images that can be read now."""
    found: dict[int, bytes] = {}
    for line in {line.number: line for line in lines}.values():
        try:
            data = read_samples([line], max_bytes=policy.max_bytes, outages=Outages(patience=_SECONDS))[line.number]
        except UserError:
            return found  # the storage does not answer
        small = None if isinstance(data, ReadFailure) else thumbnail(data, policy)
        if small is not None:
            found[line.number] = small
    return found
