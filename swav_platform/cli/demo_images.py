"""Training data of the demo: included photographs, or the user's own images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swav_platform.cli import console
from swav_platform.config import ImagePolicy, Train
from swav_platform.data.index import magic, naming
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand, is_shard
from swav_platform.data.walk import walk
from swav_platform.errors import UsageError
from swav_platform.images.decoding.header import cost_of
from swav_platform.images.decoding.refused import Refused

PER_PHOTO = {"train": 450, "query": 60}
FEWEST_STEPS = 20
DECODE_SECONDS = 120.0  # budget in core-seconds for decoding the user's own images
SECONDS_PER_MEGAPIXEL = 0.009  # decoding a JPEG on one slow core


@dataclass(frozen=True)
class Shards:
    """Training shards, and labelled shards for evaluation (None for the user's own images)."""

    sources: list[str]
    query: str | None


@dataclass(frozen=True)
class OwnImages:
    """The user's own images: a pattern of shards, or a folder of images (`packed`: to be packed first)."""

    source: str
    packed: bool


def photograph_shards(place: Path, seed: int) -> Shards:
    from webdataset import TarWriter

    from swav_platform.images.patches import patches, photographs

    photos = photographs()
    (place / "shards").mkdir()
    with console.progress() as bars:
        task = bars.add_task("images", total=len(photos) * sum(PER_PHOTO.values()), note="patches")
        for part, per_photo in PER_PHOTO.items():
            with TarWriter(str(place / "shards" / f"{part}-000000.tar"), mtime=0) as tar:
                for patch in patches(photos, per_photo, left=part == "train", seed=seed):
                    tar.write({"__key__": patch.key, "jpg": patch.content})
                    bars.update(task, advance=1)
    return Shards([str(place / "shards" / "train-000000.tar")], str(place / "shards" / "query-000000.tar"))


def own_images(data: str, place: Path) -> OwnImages:
    """A folder of images is packed; a folder with tars only, or a pattern, is used as it is. Raises UsageError for neither."""
    where = Path(data.removeprefix("file://")).expanduser().absolute()
    named = [where] if where.is_dir() else [where, *map(Path, expand([data]))]
    if any(_inside(path, place) for path in named):
        raise UsageError(f"{data} is inside {place}, which the demo replaces; choose another folder with --out.")
    if not where.is_dir():
        return OwnImages(str(where), packed=False)
    if not any(map(_is_image, _files(where, place))):
        if all(_inside(tar, place) for tar in expand([str(where)])):
            raise UsageError(f"{where} contains no images and no tars except those of an earlier demo; choose another folder.")
        return OwnImages(str(where), packed=False)
    if tars := sum(is_shard(str(file)) for file in _files(where, place)):
        console.say(f"{where} contains images and tars: the images are packed, the tars ({tars:,}) are ignored.")
    return OwnImages(str(where), packed=True)


def _inside(path: str | Path, place: Path) -> bool:
    return Path(path).resolve().is_relative_to(place.resolve())


def _files(folder: Path, place: Path) -> Iterator[Path]:
    """Files below a folder, as in `pack`, without those of an earlier demo."""
    for path in walk(os.fsencode(folder), lambda reason, path: None, avoid=[os.fsencode(place)]):
        yield Path(os.fsdecode(path))


def _is_image(path: Path) -> bool:
    name = os.fsencode(path)
    if naming.is_hidden(name) or not path.is_file():
        return False
    if (kind := naming.extension(name)) in naming.IMAGES:
        return True
    with contextlib.suppress(OSError), path.open("rb") as file:
        return kind not in naming.COMPANIONS and magic.extension_of(file.read(16)) is not None
    return False


def own_shards(own: OwnImages, place: Path) -> Shards:
    if not own.packed:
        return Shards([own.source], None)
    from swav_platform.data.pack import pack

    with console.progress() as bars:
        task = bars.add_task("pack", total=None, note="files")
        pack(
            own.source,
            place / "shards",
            samples_per_shard=10_000,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    return Shards([str(place / "shards")], None)


def affordable_steps(shards: Shards, index_folder: Path, recipe: Train) -> int:
    """Number of steps for which decoding takes about DECODE_SECONDS, estimated from a few headers; at most the recipe's."""
    from swav_platform.data.index.build import build_index
    from swav_platform.data.samples import ReadFailure, read_samples

    build_index(expand(shards.sources), index_folder)
    index = Index.open(index_folder)
    some = index.lines(range(0, index.samples, max(1, index.samples // 64)))
    contents = read_samples(some, max_bytes=ImagePolicy().max_bytes).values()
    pixels = [found for content in contents if not isinstance(content, ReadFailure) and (found := _pixels(content))]
    mean = sum(pixels) / max(1, len(pixels)) / 1e6
    images = DECODE_SECONDS / max(1e-4, mean * SECONDS_PER_MEGAPIXEL)
    return max(FEWEST_STEPS, min(int(recipe.steps or 1), int(images / recipe.batch)))


def _pixels(image: bytes) -> int:
    """Pixels according to the header; 0 for images that data tasks reject by their header."""
    name = magic.format_of(image)
    with contextlib.suppress(Refused):
        cost = cost_of(image, name) if name else None
        return cost.width * cost.height if cost else 0
    return 0
