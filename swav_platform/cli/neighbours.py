"""swav neighbours build, duplicates, curate, map."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swav_platform.cli import console
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.folder import RunFolder, find, working_copies
from swav_platform.runs.storage import Place, base_name, join, place_of

if TYPE_CHECKING:
    from swav_platform.data.index.exclusions import Exclusions
    from swav_platform.data.sets.read import EmbeddingSet
    from swav_platform.neighbours.build import Codec
    from swav_platform.neighbours.duplicates import Keep
    from swav_platform.neighbours.index import NeighbourIndex

_out_option = click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
_exclude_option = click.option(
    "--exclude", metavar="FILE", help="Leave out these samples too, besides those that the index of the run excludes."
)


@click.group()
def neighbours_command() -> None:
    """Search an embedding set, find its duplicates, choose from it. SET is a run, or the folder or URL of a set."""


@neighbours_command.command(
    epilog=console.examples(
        "swav neighbours build mine",
        "swav neighbours build s3://bucket/set --to index",
        "swav neighbours build mine --to pgvector://me@host/images#mine",
    )
)
@click.argument("place", metavar="SET")
@click.option(
    "--to", metavar="DIR", help="Folder of the index, or pgvector://USER@HOST/DATABASE#TABLE (default: SET-neighbours)."
)
@click.option("--codec", type=click.Choice(["auto", "sq8", "pq"]), default="auto", show_default=True, help="Quantisation.")
@click.option(
    "--recall",
    type=click.FloatRange(0.5, 1.0),
    default=0.985,
    show_default=True,
    help="Wanted share of the true ten nearest samples; more of it is slower.",
)
@_exclude_option
@_out_option
@console.json_option
def build(place: str, to: str | None, codec: Codec, recall: float, exclude: str | None, out: str | None, as_json: bool) -> None:
    """Build an index for fast search, whose lists are the clusters, and measure its recall."""
    from swav_platform.neighbours.build import build as build_index
    from swav_platform.neighbours.pgvector import SCHEME, store_in_postgres, table_of

    embeddings, excluded = _open(place, out, exclude)
    if to and to.startswith(SCHEME):
        began = time.monotonic()
        count = store_in_postgres(embeddings, table_of(to), excluded)
        seconds = round(time.monotonic() - began, 2)
        console.answer({"samples": count, "dim": embeddings.dim, "seconds": seconds, "out": to}, as_json)
        return
    console.answer(
        build_index(embeddings, _folder(embeddings, to), codec=codec, target=recall, excluded=excluded, progress=_say), as_json
    )


@neighbours_command.command(
    epilog=console.examples(
        "swav neighbours duplicates mine --threshold 0.95 --to duplicates.txt --html duplicates.html",
        "swav index --out index --exclude duplicates.txt",
    )
)
@click.argument("place", metavar="SET")
@click.option(
    "--threshold",
    type=click.FloatRange(0.0, 1.0),
    default=0.95,
    show_default=True,
    help="Cosine from which on two images are alike.",
)
@click.option(
    "--keep",
    type=click.Choice(["largest", "first"]),
    default="largest",
    show_default=True,
    help="Which image of a group stays: the one with the most pixels, or the first of the index.",
)
@click.option(
    "--to", metavar="FILE", default="duplicates.txt", show_default=True, help="Exclusion list for `swav index --exclude`."
)
@click.option("--html", metavar="FILE", help="Page with the groups side by side.")
@_exclude_option
@_out_option
@console.json_option
def duplicates(
    place: str, threshold: float, keep: Keep, to: str, html: str | None, exclude: str | None, out: str | None, as_json: bool
) -> None:
    """List images that are nearly the same as others, and which of them to keep."""
    target, shown = Path(to).expanduser(), console.page("--html", html) if html else None
    if target.suffix == ".parquet":
        raise UsageError(f"--to {to}: the list is text; choose a name that ends in .txt.")
    from swav_platform.neighbours.duplicates import (
        find_duplicates,
        warn_of_large_groups,
        write_exclusions,
        write_groups,
        write_page,
    )

    embeddings, index = _index(place, out, exclude)
    with console.progress() as bars:
        task = bars.add_task("duplicates", total=None, note="lists")
        found = find_duplicates(index, threshold, keep, lambda done, total: bars.update(task, completed=done, total=total))
    warn_of_large_groups(found, index.samples)
    write_exclusions(index, found.dropped, target)
    if isinstance(embeddings.place, Path):
        write_groups(index, found, embeddings.place / "duplicates.parquet")
    if shown is not None:
        write_page(embeddings, index, found, threshold, shown)
        console.say(f"Wrote {shown}")
    result = {
        "pairs": found.pairs,
        "groups": len(found.groups),
        "samples_to_drop": len(found.dropped),
        "threshold": threshold,
        "out": str(target),
    }
    console.answer(result, as_json)


@neighbours_command.command(
    epilog=console.examples(
        "swav neighbours curate mine --exclude duplicates.txt --to weights.parquet",
        "swav neighbours curate mine --keep 100000 --outliers outliers.txt --html outliers.html",
        "swav index --out index --exclude duplicates.txt --weights weights.parquet",
    )
)
@click.argument("place", metavar="SET")
@click.option("--to", metavar="FILE", default="weights.parquet", show_default=True, help="Weights for `swav index --weights`.")
@click.option("--keep", type=click.IntRange(1), help="Choose so many images; the others get weight 0 (default: weights for all).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the choice.")
@click.option("--outliers", metavar="FILE", help="List of strange images, in the form of an exclusion list.")
@click.option("--html", metavar="FILE", help="Page with the strange images.")
@_exclude_option
@_out_option
@console.json_option
def curate(
    place: str,
    to: str,
    keep: int | None,
    seed: int,
    outliers: str | None,
    html: str | None,
    exclude: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Weigh images so that what is rare counts as much as what is frequent, and find strange ones."""
    target, shown = Path(to).expanduser(), console.page("--html", html) if html else None
    if target.suffix != ".parquet":
        raise UsageError(f"--to {to}: the name must end in .parquet.")
    from swav_platform.neighbours.curate import curate as curated
    from swav_platform.neighbours.curate import store_outliers, write_outliers, write_weights
    from swav_platform.neighbours.duplicates import write_exclusions

    embeddings, index = _index(place, out, exclude)
    with console.progress() as bars:
        task = bars.add_task("curate", total=None, note="images")
        found = curated(index, keep, seed, lambda done, total: bars.update(task, completed=done, total=total))
    write_weights(index, found.weights, target)
    if isinstance(embeddings.place, Path):
        store_outliers(index, found, embeddings.place / "outliers.parquet")
    if outliers:
        write_exclusions(index, found.outliers, Path(outliers).expanduser())
    if shown is not None:
        write_outliers(embeddings, index, found, shown)
        console.say(f"Wrote {shown}")
    result = {
        "samples": index.samples,
        "kept": int((found.weights > 0).sum()),
        "clusters": found.levels,
        "outliers": len(found.outliers),
        "out": str(target),
    }
    console.answer(result, as_json)


@neighbours_command.command("map", epilog=console.examples("swav neighbours map mine --to map.parquet"))
@click.argument("place", metavar="SET")
@click.option("--to", metavar="FILE", help="Table with x, y, names and neighbours (default: map.parquet in SET).")
@_exclude_option
@_out_option
@console.json_option
def map_command(place: str, to: str | None, exclude: str | None, out: str | None, as_json: bool) -> None:
    """Place all images on a plane, by two principal components."""
    from swav_platform.neighbours.map import write_map

    embeddings, index = _index(place, out, exclude)
    folder = embeddings.place if isinstance(embeddings.place, Path) else Path()
    target = Path(to).expanduser() if to else folder / "map.parquet"
    with console.progress() as bars:
        task = bars.add_task("map", total=None, note="images")
        result = write_map(index, target, progress=lambda done, total: bars.update(task, completed=done, total=total))
    console.answer(result, as_json)


def _open(place: str, out: str | None, exclude: str | None) -> tuple[EmbeddingSet, Exclusions]:
    """The set that is meant, and the samples that must not be used."""
    from swav_platform.data.index.exclusions import Exclusions
    from swav_platform.data.sets.excluded import excluded_now
    from swav_platform.data.sets.read import has_set, open_set

    given = place_of(place)
    given = given.expanduser().absolute() if isinstance(given, Path) else given
    if not has_set(given):
        given = join(_run(place, out).place, "embeddings")
    excluded = excluded_now(given)
    return open_set(given), excluded | Exclusions.of_file(exclude) if exclude else excluded


def _run(place: str, out: str | None) -> RunFolder:
    try:
        return find(place, out)
    except UsageError as error:
        if place_of(place) != Path(place) or "/" in place or Path(place).exists():
            raise UsageError(f"There is no embedding set in {place}. Make one with `swav embed RUN --to {place}`.") from error
        raise


def _folder(embeddings: EmbeddingSet, to: str | None = None) -> Path:
    """The folder of the index of a set."""
    if to:
        return Path(to).expanduser().absolute()
    place: Place = embeddings.place
    name = f"{base_name(place)}-neighbours"
    return place.with_name(name) if isinstance(place, Path) else working_copies(place) / name


def _index(place: str, out: str | None, exclude: str | None) -> tuple[EmbeddingSet, NeighbourIndex]:
    """The index of a set, which is built if there is none, or if the set has changed."""
    from swav_platform.neighbours.build import build as build_index
    from swav_platform.neighbours.index import open_neighbours

    embeddings, excluded = _open(place, out, exclude)
    folder = _folder(embeddings)
    try:
        return embeddings, open_neighbours(folder, of_set=embeddings.digest, excluded=excluded)
    except UserError:
        console.say(f"Builds the neighbour index {folder} first.")
        build_index(embeddings, folder, progress=_say)
    return embeddings, open_neighbours(folder, of_set=embeddings.digest, excluded=excluded)


def _say(what: str) -> None:
    console.say(f"{time.strftime('%H:%M:%S')} {what}")
