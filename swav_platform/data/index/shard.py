"""Reads the samples of one tar: which members are images, their keys and their labels."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from obstore.exceptions import BaseError, NotSupportedError

from swav_platform.data.index import magic, naming
from swav_platform.data.index.tar import Member, NotATar, scan_file
from swav_platform.data.storage.cache import is_command, local_copy
from swav_platform.data.storage.errors import explain
from swav_platform.data.storage.ranges import Ranges, open_ranges
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

EXAMPLES = 3  # names kept for each reason of skipped members

SHARD_REASONS = {
    "shard_empty_file": "is an empty file",
    "shard_compressed": "is compressed, but not a compressed tar",
    "shard_not_a_tar": "is not a tar",
    "shard_unreadable": "can't be read",
}


@dataclass(frozen=True)
class Skipped:
    """Members that are not samples: counts by reason, and the first names of each reason."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, name: str, count: int = 1) -> None:
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            if name and len(names := self.examples.setdefault(reason, [])) < EXAMPLES:
                names.append(name)

    def add(self, other: Skipped) -> None:
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            if reason in other.examples:
                self.examples[reason] = [*self.examples.get(reason, ()), *other.examples[reason]][:EXAMPLES]


@dataclass(frozen=True)
class ShardSamples:
    """One line per sample, in the order of the tar (columns of SCHEMA). whole: the shard can't be read by ranges."""

    lines: pa.Table
    skipped: Skipped
    bytes_read: int
    whole: bool = False


def check_label(label: str | None) -> None:
    """Raises UsageError for an unknown label source."""
    if label not in (None, "folder", "cls") and not re.fullmatch("json:.+", label):
        raise UsageError(f"Unknown label source '{label}': use folder, cls, or json:FIELD (a field of each sample's .json).")


def read_shard(url: str, number: int, label: str | None, version: str = "") -> ShardSamples:
    """The samples of the tar at `url`, which is shard `number` of its index.

    Every image is a sample, even if several share a key. A broken shard has no samples, and its reason is counted. Never raises
    for the content of a file.
    """
    try:
        if is_command(url):
            return _unpacked(url, number, label, version)
        try:
            with open_ranges(url) as file:
                return _samples(file, url, number, label)
        except (NotSupportedError, NotATar) as error:
            if isinstance(error, NotATar) and error.reason != "compressed":
                raise
            try:
                return _unpacked(url, number, label, version)
            except NotATar:
                raise error from None
    except NotATar as error:
        return _broken(error.reason, str(error))
    except (OSError, EOFError, BaseError) as error:
        return _broken("unreadable", explain(url, error))


def _unpacked(url: str, number: int, label: str | None, version: str) -> ShardSamples:
    with open_ranges(str(local_copy(url, version))) as file:
        found = _samples(file, url, number, label)
        return replace(found, whole=True, bytes_read=file.size)


def _broken(reason: str, detail: str) -> ShardSamples:
    skipped = Skipped()
    skipped.note(f"shard_{reason}", detail)
    return ShardSamples(SCHEMA.empty_table(), skipped, 0)


def _samples(file: Ranges, url: str, number: int, label: str | None) -> ShardSamples:
    found = scan_file(file, url)
    skipped = Skipped()
    for reason, count in found.problems.items():
        skipped.note(reason, "", count)
    members = _visible(found.members, skipped)
    images = [(member, kind) for member in members if (kind := _image_kind(member, file)) is not None]
    _note_imageless(members, images, skipped)
    columns = {
        "shard": np.full(len(images), number, np.int32),
        "key": _keys([member.name for member, _ in images]),
        "offset": [member.offset for member, _ in images],
        "size": [member.size for member, _ in images],
        "extension": [kind for _, kind in images],
        "label": _labels(label, members, images, file),
        "weight": np.ones(len(images), np.float32),
    }
    return ShardSamples(pa.table(columns, schema=SCHEMA), skipped, file.bytes_read)


def _content(file: Ranges, member: Member, limit: int) -> bytes:
    return file.read(min(member.size, limit), member.offset)


def _visible(members: Iterable[Member], skipped: Skipped) -> list[Member]:
    """Members without hidden files and without repeated names, of which the first is kept."""
    seen: dict[bytes, Member] = {}
    for member in members:
        if naming.is_hidden(member.name):
            skipped.note("hidden", naming.text(member.name))
        elif seen.setdefault(member.name, member) is not member:
            skipped.note("duplicate", naming.text(member.name))
    return list(seen.values())


def _image_kind(member: Member, file: Ranges) -> str | None:
    """The extension of an image, None for other members. A member with an unknown extension is judged by its first bytes."""
    extension = naming.extension(member.name)
    if extension in naming.IMAGES:
        return extension
    if extension in naming.COMPANIONS:
        return None
    return magic.extension_of(_content(file, member, 16))


def _note_imageless(members: list[Member], images: list[tuple[Member, str]], skipped: Skipped) -> None:
    """Counts keys without an image, such as failed downloads or a README. Companions of an image are not counted."""
    if len(images) == len(members):
        return
    with_image = {naming.sample_key(member.name) for member, _ in images}
    for key in dict.fromkeys(naming.sample_key(member.name) for member in members):
        if key not in with_image:
            skipped.note("no_image", naming.text(key))


def _keys(names: list[bytes]) -> list[str]:
    """WebDataset's keys. Images that share a key get the name without its extension, then the whole name."""
    keys = [naming.sample_key(name) for name in names]
    for longer in (naming.without_extension, bytes):
        taken = Counter(keys)
        if len(taken) == len(keys):
            break
        keys = [longer(name) if taken[key] > 1 else key for key, name in zip(keys, names, strict=True)]
    return [naming.text(key) for key in keys]


def _labels(label: str | None, members: list[Member], images: list[tuple[Member, str]], file: Ranges) -> list[str | None]:
    if label is None:
        return [None] * len(images)
    if label == "folder":
        return [_folder(member.name) for member, _ in images]
    wanted = "cls" if label == "cls" else "json"
    beside = {naming.sample_key(m.name): m for m in members if naming.extension(m.name) == wanted}
    texts = [beside.get(naming.sample_key(member.name)) for member, _ in images]
    return [None if member is None else _read_label(label, _content(file, member, 2**20)) for member in texts]


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
