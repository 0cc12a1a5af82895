"""The samples of one tar: which members are images, their keys, their labels."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from swav_platform.data import naming
from swav_platform.data.tar import Member, NotATar, scan
from swav_platform.errors import UsageError

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("extension", pa.string()),
        ("label", pa.string()),
        ("weight", pa.float32()),
    ]
)


@dataclass(frozen=True)
class ShardSamples:
    """A line a sample, in the order of the tar (columns of SCHEMA); `skipped`: what is no sample, by reason."""

    lines: pa.Table
    skipped: dict[str, int]
    bytes_read: int


def check_label(label: str | None) -> None:
    """Raises UsageError for a label source that does not exist."""
    if label not in (None, "folder", "cls") and not re.fullmatch("json:.+", label):
        raise UsageError(f"'{label}' is no source of labels: take folder, cls, or json:FIELD (a field of each sample's .json).")


def read_shard(path: str | Path, number: int, label: str | None) -> ShardSamples:
    """The samples of the tar at `path`, which is shard `number` of its index.

    Every image member is a sample, also where several share a key. A broken shard has no samples and its reason
    counted; never raises for what the file holds.
    """
    try:
        return _samples(path, number, label)
    except NotATar as error:
        return ShardSamples(SCHEMA.empty_table(), {f"shard_{error.reason}": 1}, 0)
    except OSError:
        return ShardSamples(SCHEMA.empty_table(), {"shard_unreadable": 1}, 0)


def _samples(path: str | Path, number: int, label: str | None) -> ShardSamples:
    found = scan(path)
    skipped = Counter(found.problems)
    with _Contents(path) as contents:
        members = _visible(found.members, skipped)
        images = [(member, kind) for member in members if (kind := _image_kind(member, contents)) is not None]
        skipped["no_image"] = _imageless(members, images)
        labels = _labels(label, members, images, contents)
    columns = {
        "shard": np.full(len(images), number, np.int32),
        "key": _keys([member.name for member, _ in images]),
        "offset": [member.offset for member, _ in images],
        "size": [member.size for member, _ in images],
        "extension": [kind for _, kind in images],
        "label": labels,
        "weight": np.ones(len(images), np.float32),
    }
    return ShardSamples(pa.table(columns, schema=SCHEMA), dict(+skipped), found.bytes_read + contents.bytes_read)


class _Contents:
    """Counted reads of members' contents."""

    def __init__(self, path: str | Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self.bytes_read = 0

    def __enter__(self) -> _Contents:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, member: Member, limit: int) -> bytes:
        data = os.pread(self._descriptor, min(member.size, limit), member.offset)
        self.bytes_read += len(data)
        return data


def _visible(members: Iterable[Member], skipped: Counter[str]) -> list[Member]:
    """Without what desktops leave behind, and without names that come again: the first one stays."""
    seen: dict[bytes, Member] = {}
    for member in members:
        if naming.is_hidden(member.name):
            skipped["hidden"] += 1
        elif seen.setdefault(member.name, member) is not member:
            skipped["duplicate"] += 1
    return list(seen.values())


def _image_kind(member: Member, contents: _Contents) -> str | None:
    """The extension of an image, from its first bytes where the name says nothing; None for what is none."""
    extension = naming.extension(member.name)
    if extension in naming.IMAGES:
        return extension
    if extension in naming.COMPANIONS:
        return None
    return naming.kind_of(contents.read(member, 16))


def _imageless(members: list[Member], images: list[tuple[Member, str]]) -> int:
    """How many keys have no image: failed downloads, READMEs. An image's companions do not count."""
    if len(images) == len(members):
        return 0
    with_image = {naming.sample_key(member.name) for member, _ in images}
    return len({naming.sample_key(member.name) for member in members} - with_image)


def _keys(names: list[bytes]) -> list[str]:
    """Keys as WebDataset's; where images share one, the name without its extension, then the whole name."""
    keys = [naming.sample_key(name) for name in names]
    for longer in (naming.without_extension, bytes):
        taken = Counter(keys)
        if len(taken) == len(keys):
            break
        keys = [longer(name) if taken[key] > 1 else key for key, name in zip(keys, names, strict=True)]
    return [naming.text(key) for key in keys]


def _labels(label: str | None, members: list[Member], images: list[tuple[Member, str]], contents: _Contents) -> list[str | None]:
    if label is None:
        return [None] * len(images)
    if label == "folder":
        return [_folder(member.name) for member, _ in images]
    wanted = "cls" if label == "cls" else "json"
    beside = {naming.sample_key(m.name): m for m in members if naming.extension(m.name) == wanted}
    texts = [beside.get(naming.sample_key(member.name)) for member, _ in images]
    return [None if member is None else _read_label(label, contents.read(member, 2**20)) for member in texts]


def _folder(name: bytes) -> str | None:
    return naming.text(name.rpartition(b"/")[0].removeprefix(b"./")) or None


def _read_label(label: str, content: bytes) -> str | None:
    if label == "cls":
        return naming.text(content.strip()) or None
    try:
        value = json.loads(content).get(label.removeprefix("json:"))
    except (ValueError, AttributeError, RecursionError):
        return None
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
