"""Packs a folder of images, with any nesting and any names, into tars."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from swav_platform.atomic import replacing
from swav_platform.data.index import magic, naming
from swav_platform.data.index.shard import Skipped
from swav_platform.data.walk import walk
from swav_platform.errors import UsageError, UserError

_SAMPLES, _BYTES = 10_000, 256 * 2**20  # maximum of a shard


_FOLDERS = ("hidden_folder", "linked_folder")


@dataclass(frozen=True)
class PackReport:
    """What `pack` did.

    files: files found. samples: files packed, into `shards` tars. skipped: the other files by reason, hidden folders, and links to
    folders that are packed under another name. examples: some names of each reason. undecoded: packed images by extension whose type no run decodes.
    """

    files: int
    samples: int
    shards: int
    skipped: dict[str, int]
    examples: dict[str, list[str]]
    undecoded: dict[str, int]


@dataclass(frozen=True)
class _Image:
    path: bytes
    name: bytes  # relative to the folder
    extension: str
    size: int


def pack(
    folder: str | Path,
    out: str | Path,
    *,
    samples_per_shard: int = _SAMPLES,
    bytes_per_shard: int = _BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Packs the images of `folder` into `out`/shard-000000.tar …, byte for byte, including broken ones.

    Images are sorted by the bytes of their names, and the same files give the same tars. progress: called with (images
    packed, images). Raises UsageError if the folder does not exist or has no image, or if `out` has other shards. Raises
    UserError if reading or writing fails.
    """
    folder, out = Path(folder), Path(out)
    for path, use in ((folder, "of images"), (out, "for the shards")):
        if path.exists() and not path.is_dir():
            raise UsageError(f"'{path}' is a file: pass a folder {use}.")
    if not folder.is_dir():
        raise UsageError(f"Folder '{folder}' does not exist: pass a folder of images.")
    if out.resolve() == folder.resolve():
        raise UsageError(
            f"'{out}' is the folder of the images itself: choose another one for the shards, such as '{folder}-shards'."
        )
    skipped = Skipped()
    images = sorted(_images(os.fsencode(folder), out, skipped), key=lambda image: image.name)
    files = len(images) + sum(count for reason, count in skipped.counts.items() if reason not in _FOLDERS)
    if not images:
        raise UsageError(f"Folder '{folder}' contains no image ({files} other files): pass a folder of images.")
    keys = _distinct_keys(images)
    batches = list(_batches(images, samples_per_shard, bytes_per_shard))
    names = [f"shard-{number:06d}.tar" for number in range(len(batches))]
    source = naming.text(os.path.realpath(os.fsencode(folder)))
    earlier = _earlier(out, source)
    _note(out, source, sorted(earlier.union(names)))
    seen = packed = 0
    for name, batch in zip(names, batches, strict=True):
        with replacing(out / name) as aside:
            for done in _write(aside, batch, keys, skipped):
                seen, packed = seen + 1, packed + done
                if progress is not None:
                    progress(seen, len(images))
    for name in earlier.difference(names):  # last, so that an interrupted run leaves a complete shard under each name
        (out / name).unlink(missing_ok=True)
    _note(out, source, names)
    undecoded = dict(Counter(image.extension for image in images if image.extension not in naming.DECODED))
    return PackReport(files, packed, len(names), skipped.counts, skipped.examples, undecoded)


def _images(root: bytes, out: Path, skipped: Skipped) -> Iterator[_Image]:
    """Image files below `root`. Raises UserError if `root` can't be read."""

    def note(reason: str, path: bytes) -> None:
        name = naming.text(os.path.relpath(path, root)) + ("/" if os.path.isdir(path) and reason == "unreadable" else "")
        skipped.note("unreadable" if reason == "dangling_link" else reason, name)

    try:
        for path in walk(root, note, avoid=[os.fsencode(out)]):
            name = os.path.relpath(path, root)
            try:
                found = _image(path, name)
            except OSError:
                found = "unreadable"
            if isinstance(found, _Image):
                yield found
            else:
                note(found, path)
    except OSError as error:
        raise UserError(f"Folder '{os.fsdecode(root)}' can't be read ({error.strerror}): check its permissions.") from None


def _image(path: bytes, name: bytes) -> _Image | str:
    """The image at a path, or the reason why it is not one. Raises OSError."""
    if naming.is_hidden(name):
        return "hidden"
    kind: str | None = naming.extension(name)
    if kind not in naming.IMAGES:
        kind = None if kind in naming.COMPANIONS else magic.extension_of(_head(path))
    return _Image(path, name, kind, os.stat(path).st_size) if kind else "not_an_image"


def _head(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _distinct_keys(images: list[_Image]) -> dict[bytes, str]:
    """A unique key for each name. In WebDataset, a key ends at the first dot of the base name, so dots become %2E."""
    keys: dict[bytes, str] = {}
    taken: set[str] = set()
    for image in images:
        stem = naming.without_extension(image.name) if naming.extension(image.name) in naming.IMAGES else image.name
        folder, slash, base = naming.text(stem).rpartition("/")
        key = plain = folder + slash + base.replace(".", "%2E")
        number = 2
        while key in taken:
            key, number = f"{plain}~{number}", number + 1
        taken.add(key)
        keys[image.name] = key
    return keys


def _batches(images: list[_Image], most_samples: int, most_bytes: int) -> Iterator[list[_Image]]:
    batch: list[_Image] = []
    size = 0
    for image in images:
        if batch and (len(batch) >= most_samples or size + image.size > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(image)
        size += image.size
    yield batch


def _earlier(out: Path, source: str) -> set[str]:
    """Names of the shards in `out` from an earlier packing of the folder `source`.

    Raises UsageError if `out` has other tars or shards of another folder; these are never overwritten.
    """
    note = out / "pack.json"
    try:
        saved = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {"shards": []}
        ours = {Path(name).name for name in saved["shards"]}
        others = sorted(path.name for path in out.glob("*.tar") if path.name not in ours)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"Folder '{out}' can't be read ({error}): choose another one.") from None
    if others:
        raise UsageError(
            f"Folder '{out}' already contains other tars, for example {others[0]}: choose a new folder for the shards."
        )
    if ours and saved.get("folder", source) != source:
        raise UsageError(
            f"Folder '{out}' contains shards packed from '{saved['folder']}': choose a new folder or delete this one first."
        )
    return ours


def _note(out: Path, source: str, names: list[str]) -> None:
    try:
        with replacing(out / "pack.json") as aside:
            aside.write_text(json.dumps({"folder": source, "shards": names}), encoding="utf-8")
    except OSError as error:
        raise UserError(f"Folder '{out}' can't be written to ({error}): choose another one.") from None


def _write(path: Path, images: list[_Image], keys: dict[bytes, str], skipped: Skipped) -> Iterator[bool]:
    """Writes a shard. Yields for each image whether it was readable; raises OSError only for the shard."""
    from webdataset.writer import TarWriter  # imports torch, which takes a second: readers of shards should not pay for it

    with path.open("wb") as file, TarWriter(file, user="", group="", mtime=0.0, encoder=False) as tar:
        for image in images:
            if (content := _content(image.path)) is None:
                skipped.note("unreadable", naming.text(image.name))
            else:
                tar.write({"__key__": keys[image.name], image.extension: content})
            yield content is not None


def _content(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
