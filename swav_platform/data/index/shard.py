"""Reads the samples of one tar: which members are images, their keys and their labels."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa
from obstore.exceptions import BaseError, NotSupportedError

from swav_platform.data.index import magic, naming
from swav_platform.data.index.tar import Member, NotATar, scan_file
from swav_platform.data.storage.cache import is_command, local_copy
from swav_platform.data.storage.errors import explain
from swav_platform.data.storage.ranges import LocalFile, Ranges, open_ranges, probe
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

_MOST_KINDS, _MOST_EXTENSIONS = 20, 8  # limits of the listed combinations of extensions
EXAMPLES = 5  # names kept for each reason of skipped members

SHARD_REASONS = {
    "shard_empty_file": "is an empty file",
    "shard_compressed": "is compressed, but not a compressed tar",
    "shard_not_a_tar": "is not a tar",
    "shard_unreadable": "can't be read",
}


@dataclass(frozen=True)
class Skipped:
    """Members that are not samples: counts by reason, and the first names of each reason.

    several: the number of keys with several images, by the extensions of these.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    several: dict[str, int] = field(default_factory=dict)

    def note(self, reason: str, name: str, count: int = 1) -> None:
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            if name and len(names := self.examples.setdefault(reason, [])) < EXAMPLES:
                names.append(name)

    def add(self, other: Skipped) -> None:
        for extensions, count in other.several.items():
            self.several[extensions] = self.several.get(extensions, 0) + count
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            if reason in other.examples:
                self.examples[reason] = [*self.examples.get(reason, ()), *other.examples[reason]][:EXAMPLES]

    def told(self) -> str:
        """One phrase per reason, with names."""
        return "; ".join(
            f"{count:,} {reason} ({', '.join(names) + (', ...' if count > len(names) else '')})"
            for reason, count in self.counts.items()
            if (names := self.examples.get(reason, [])) is not None
        )


@dataclass(frozen=True)
class ShardSamples:
    """One line per sample, in the order of the tar (columns of SCHEMA).

    whole: the shard can't be read by ranges. probe: a hash of some bytes of a local shard.
    """

    lines: pa.Table
    skipped: Skipped
    bytes_read: int
    whole: bool = False
    probe: bytes | None = None


def check_label(label: str | None) -> None:
    """Raises UsageError for an unknown label source."""
    if label not in (None, "folder", "cls") and not re.fullmatch("json:.+", label):
        raise UsageError(
            f"Unknown label source '{label}': use folder, cls, or json:FIELD (a field of each sample's .json, also a path such as json:meta.class)."
        )


def read_shard(url: str, number: int, label: str | None, version: str = "", chosen: tuple[str, ...] = ()) -> ShardSamples:
    """The samples of the tar at `url`, which is shard `number` of its index.

    Every image is a sample, even if several share a key. chosen: patterns of the extensions of images that are samples; all if empty. A broken shard has no samples, and its reason is counted. Never raises
    for the content of a file.
    """
    try:
        if is_command(url):
            return _unpacked(url, number, label, version, chosen)
        try:
            with open_ranges(url) as file:
                return _samples(file, url, number, label, chosen)
        except (NotSupportedError, NotATar) as error:
            if isinstance(error, NotATar) and error.reason != "compressed":
                raise
            try:
                return _unpacked(url, number, label, version, chosen)
            except NotATar:
                raise error from None
    except NotATar as error:
        return _broken(error.reason, str(error))
    except (OSError, EOFError, BaseError) as error:
        return _broken("unreadable", explain(url, error))


def _unpacked(url: str, number: int, label: str | None, version: str, chosen: tuple[str, ...]) -> ShardSamples:
    with open_ranges(str(local_copy(url, version))) as file:
        found = _samples(file, url, number, label, chosen)
        return replace(found, whole=True, bytes_read=file.size, probe=None)


def _broken(reason: str, detail: str) -> ShardSamples:
    skipped = Skipped()
    skipped.note(f"shard_{reason}", detail)
    return ShardSamples(SCHEMA.empty_table(), skipped, 0)


def _samples(file: Ranges, url: str, number: int, label: str | None, chosen: tuple[str, ...]) -> ShardSamples:
    found = scan_file(file, url)
    skipped = Skipped()
    for reason, count in found.problems.items():
        skipped.note(reason, "", count)
    members = _visible(found.members, skipped)
    images = [(member, kind) for member in members if (kind := _image_kind(member, file)) is not None]
    _note_imageless(members, images, skipped)
    if chosen:
        images = _choose(images, chosen, skipped)
    names = [member.name for member, _ in images]
    keys = [naming.sample_key(name) for name in names]
    if len(set(keys)) < len(keys):
        _note_several(keys, names, skipped)
        keys = _longer_keys(keys, names)
    columns = {
        "shard": np.full(len(images), number, np.int32),
        "key": [naming.text(key) for key in keys],
        "offset": [member.offset for member, _ in images],
        "size": [member.size for member, _ in images],
        "extension": [kind for _, kind in images],
        "label": _labels(label, members, images, file),
        "weight": np.ones(len(images), np.float32),
    }
    read = file.bytes_read
    return ShardSamples(
        pa.table(columns, schema=SCHEMA), skipped, read, probe=probe(file) if isinstance(file, LocalFile) else None
    )


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
    others = []
    for member in members:
        if member.name.lower().endswith(naming.TARS):
            skipped.note("nested_tar", naming.text(member.name))
        else:
            others.append(naming.sample_key(member.name))
    for key in dict.fromkeys(others):
        if key not in with_image:
            skipped.note("no_image", naming.text(key))


def _choose(images: list[tuple[Member, str]], chosen: tuple[str, ...], skipped: Skipped) -> list[tuple[Member, str]]:
    found = []
    for member, kind in images:
        extension = naming.whole_extension(member.name) or kind
        if any(fnmatchcase(text, pattern.lower()) for pattern in chosen for text in (extension, f".{extension}")):
            found.append((member, kind))
        else:
            skipped.note("not_chosen", naming.text(member.name))
    return found


def _note_several(keys: list[bytes], names: list[bytes], skipped: Skipped) -> None:
    taken = Counter(keys)
    together: dict[bytes, list[str]] = {}
    for key, name in zip(keys, names, strict=True):
        if taken[key] > 1:
            together.setdefault(key, []).append(naming.whole_extension(name))
    for extensions in together.values():
        text = ", ".join(sorted(extensions)[:_MOST_EXTENSIONS])
        text = text if text in skipped.several or len(skipped.several) < _MOST_KINDS else "others"
        skipped.several[text] = skipped.several.get(text, 0) + 1


def _longer_keys(keys: list[bytes], names: list[bytes]) -> list[bytes]:
    """WebDataset's keys, but images that share a key get the name without its extension, then the whole name."""
    for longer in (naming.without_extension, bytes):
        taken = Counter(keys)
        if len(taken) == len(keys):
            break
        keys = [longer(name) if taken[key] > 1 else key for key, name in zip(keys, names, strict=True)]
    return keys


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
        value = _field(json.loads(content), label.removeprefix("json:"))
    except (ValueError, AttributeError, RecursionError):
        return None
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _field(tree: Any, name: str) -> Any:
    """A field by its name, or by a path with dots: `meta.class` is the field `class` of the field `meta`."""
    if name in tree or "." not in name:
        return tree.get(name)
    for part in name.split("."):
        tree = None if tree is None else tree.get(part)
    return tree
