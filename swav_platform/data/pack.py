"""A folder of images of any nesting and any names -> tars."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from swav_platform.atomic import replacing
from swav_platform.data.index import naming
from swav_platform.data.index.shard import Skipped
from swav_platform.errors import UsageError, UserError

_SAMPLES, _BYTES = 10_000, 256 * 2**20  # of a shard


@dataclass(frozen=True)
class PackReport:
    """`files`: seen in the folder; `samples`: of these packed, in `shards` tars; `skipped`: the others, by reason, and
    hidden folders, whose files nobody looks at; `examples`: some of their names; `undecoded`: packed images of types that
    no run decodes, by extension."""

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
    """Pack the images of `folder` into `out`/shard-000000.tar …, as they are, also broken ones.

    The order is that of the names' bytes, and the same files give the same tars. progress: called with (images
    packed, images). Raises UsageError if there is no such folder, if it has no image or if `out` holds other shards, and
    UserError if the disk refuses.
    """
    folder, out = Path(folder), Path(out)
    for path, use in ((folder, "of images"), (out, "for the shards")):
        if path.exists() and not path.is_dir():
            raise UsageError(f"'{path}' is a file: name a folder {use}.")
    if not folder.is_dir():
        raise UsageError(f"There is no folder '{folder}': name a folder of images.")
    if out.resolve() == folder.resolve():
        raise UsageError(
            f"'{out}' is the folder of the images itself: name another one for the shards, such as '{folder}-shards'."
        )
    skipped = Skipped()
    images = sorted(_images(os.fsencode(folder), out, skipped), key=lambda image: image.name)
    files = len(images) + sum(count for reason, count in skipped.counts.items() if reason != "hidden_folder")
    if not images:
        raise UsageError(f"The folder '{folder}' has no image in it ({files} other files): name a folder of images.")
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
    for name in earlier.difference(names):  # only now: whoever stops this keeps a shard of either packing under each name
        (out / name).unlink(missing_ok=True)
    _note(out, source, names)
    undecoded = dict(Counter(image.extension for image in images if image.extension not in naming.DECODED))
    return PackReport(files, packed, len(names), skipped.counts, skipped.examples, undecoded)


def _images(root: bytes, out: Path, skipped: Skipped) -> Iterator[_Image]:
    """Image files below `root`, also behind links; each folder once, so that links in a circle end.

    Raises UserError if `root` can't be read.
    """

    def unread(error: OSError) -> None:
        place = os.path.relpath(os.fsencode(error.filename or root), root)
        if place == b".":
            raise UserError(f"The folder '{os.fsdecode(root)}' can't be read ({error.strerror}): check its permissions.")
        skipped.note("unreadable", naming.text(place) + "/")

    seen = {_identity(os.fsencode(out))} - {_identity(root)}
    for folder, folders, names in os.walk(root, onerror=unread, followlinks=True):
        if (identity := _identity(folder)) in seen:
            folders.clear()
            continue
        seen.add(identity)
        for name in folders:
            if name.startswith(b"."):
                skipped.note("hidden_folder", naming.text(os.path.relpath(os.path.join(folder, name), root)))
        folders[:] = sorted(name for name in folders if not name.startswith(b"."))
        for name in names:
            path = os.path.join(folder, name)
            try:
                found = _image(path, os.path.relpath(path, root))
            except OSError:
                found = "unreadable"
            if isinstance(found, _Image):
                yield found
            else:
                skipped.note(found, naming.text(os.path.relpath(path, root)))


def _identity(folder: bytes) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _image(path: bytes, name: bytes) -> _Image | str:
    """The image at a path, or why it is none. Raises OSError."""
    if naming.is_hidden(name):
        return "hidden"
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return "special_file"
    kind: str | None = naming.extension(name)
    if kind not in naming.IMAGES:
        kind = None if kind in naming.COMPANIONS else naming.kind_of(_head(path))
    return _Image(path, name, kind, status.st_size) if kind else "not_an_image"


def _head(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _distinct_keys(images: list[_Image]) -> dict[bytes, str]:
    """A key for each name. WebDataset takes a key to end at the first dot of the base name, so dots become %2E."""
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
    """Names of the shards that an earlier packing of the folder `source` left in `out`.

    Raises UsageError for tars of others and for shards of another folder, which are not touched.
    """
    note = out / "pack.json"
    try:
        told = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {"shards": []}
        ours = {Path(name).name for name in told["shards"]}
        others = sorted(path.name for path in out.glob("*.tar") if path.name not in ours)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The folder '{out}' can't be read ({error}): name another one.") from None
    if others:
        raise UsageError(
            f"The folder '{out}' holds tars already, for example {others[0]}: name a new folder for the packed ones."
        )
    if ours and told.get("folder", source) != source:
        raise UsageError(
            f"The folder '{out}' holds what was packed from '{told['folder']}': name a new folder, or delete it first."
        )
    return ours


def _note(out: Path, source: str, names: list[str]) -> None:
    try:
        with replacing(out / "pack.json") as aside:
            aside.write_text(json.dumps({"folder": source, "shards": names}), encoding="utf-8")
    except OSError as error:
        raise UserError(f"The folder '{out}' can't be written to ({error}): name another one.") from None


def _write(path: Path, images: list[_Image], keys: dict[bytes, str], skipped: Skipped) -> Iterator[bool]:
    """Write a shard; yields for each image whether it could be read. Raises OSError for the shard only."""
    from webdataset.writer import TarWriter  # takes a second and imports torch: not for those who only read

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
