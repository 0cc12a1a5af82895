"""swav embed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swav_platform.cli import console
from swav_platform.errors import UserError
from swav_platform.failures import MachineFault, duration
from swav_platform.runs.folder import RunFolder, find, working_copies
from swav_platform.runs.storage import Place, is_url, join, place_of, storage_of

if TYPE_CHECKING:
    from swav_platform.data.index.lookup import Index
    from swav_platform.data.sets.layout import DType, Space
    from swav_platform.evaluation.embed import Runner

SMALL = 50_000
"""Samples up to which starting Ray would not pay."""

_SAY = 30.0  # seconds between lines about the progress where there is no terminal


@click.command(
    epilog=console.examples(
        "swav embed mine",
        "swav embed mine --data 'other/*.tar' --to other-embeddings --label folder",
        "swav embed s3://bucket/runs/mine --workers 8 --no-thumbnails",
    )
)
@click.argument("run")
@click.option("--data", multiple=True, metavar="PATTERN", help="Shards to embed (default: the training data of the run).")
@click.option("--to", metavar="PLACE", help="Folder or s3:// URL of the set (default: embeddings in the run).")
@click.option("--label", help="Source of labels to show with neighbours: folder, cls or json:FIELD.")
@click.option("--no-thumbnails", is_flag=True, help="Do not store thumbnails.")
@click.option(
    "--space",
    type=click.Choice(["backbone", "head"]),
    default="backbone",
    show_default=True,
    help="The encoder's output, or the projection that is compared with prototypes.",
)
@click.option(
    "--dtype", type=click.Choice(["float16", "int8"]), default="float16", show_default=True, help="Stored form of a number."
)
@click.option("--runtime", default="auto", show_default=True, help="Of `swav serve`: torch, onnx, bf16, int8, compile.")
@click.option("--local", is_flag=True, help=f"Use this process only. Default up to {SMALL:,} images without RAY_ADDRESS.")
@click.option("--workers", type=click.IntRange(1), help="Processes on the Ray cluster (default: one per GPU, else per CPU).")
@click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
@console.json_option
def embed_command(
    run: str,
    data: tuple[str, ...],
    to: str | None,
    label: str | None,
    no_thumbnails: bool,
    space: Space,
    dtype: DType,
    runtime: str,
    local: bool,
    workers: int | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Embed images with RUN's encoder, for search, deduplication and curation.

    A command that was stopped goes on where it was when it is repeated, also with other --workers.
    """
    folder = find(run, out)
    target = place_of(to) if to else None
    _, result = embed_images(
        folder,
        target.expanduser().absolute() if isinstance(target, Path) else target,
        data=data,
        label=label,
        thumbnails=not no_thumbnails,
        space=space,
        dtype=dtype,
        runtime=runtime,
        local=local,
        workers=workers,
    )
    console.answer(result, as_json)


def embed_images(
    folder: RunFolder,
    target: Place | None = None,
    *,
    data: Sequence[str] = (),
    label: str | None = None,
    thumbnails: bool = True,
    space: Space = "backbone",
    dtype: DType = "float16",
    runtime: str = "auto",
    local: bool = False,
    workers: int | None = None,
) -> tuple[Index, dict[str, Any]]:
    """Embeds `data` (default: the training data) with a progress bar. Returns its index and the report of `embed`."""
    from swav_platform.evaluation.embed import embed, embed_job

    config = folder.config()
    target = target or join(folder.place, "embeddings")
    index = _index(folder, target, data, label)
    package = join(folder.place, "model") if folder.url else folder.package
    job = embed_job(
        package,
        index,
        target,
        config.data.images,
        space=space,
        dtype=dtype,
        thumbnails=thumbnails,
        patience=config.data.storage_patience,
        runtime=runtime,
    )
    with console.progress() as bars:
        task = bars.add_task("embed", total=index.samples, note="images")
        lines = _Lines()

        def progress(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)
            lines(done, total)

        try:
            result = embed(job, _runner(index, local, workers), progress)
        except MachineFault as fault:
            raise UserError(fault.told("run the same command again, which goes on where it stopped")) from fault
    if label and not result["labelled"]:
        console.say(f"None of the {result['samples']:,} images has a label of source '{label}'; check --label.")
    return index, result


def _index(folder: RunFolder, target: Place, data: Sequence[str], label: str | None) -> Index:
    """The index to embed, at a place that every node sees."""
    from swav_platform.data.datasets import labelled, open_index
    from swav_platform.data.index.build import build_index
    from swav_platform.data.index.lookup import Index
    from swav_platform.data.index.sources import expand

    allow_pipe = folder.config().data.allow_pipe
    here = working_copies(str(target)) / "index" if isinstance(target, str) else target / "index"
    if data:
        build_index(expand(data, allow_pipe=allow_pipe), here, label=label)
    else:
        trained = open_index(folder.info()["index"], allow_pipe=allow_pipe)
        if not label:
            return trained
        labelled(trained, here, label)
    if not is_url(str(target)):
        return Index.open(here)
    for file in sorted(path for path in here.rglob("*") if path.is_file()):
        storage_of(target).put(f"index/{file.relative_to(here).as_posix()}", file)
    return Index.open(str(join(target, "index")))


def _runner(index: Index, local: bool, workers: int | None) -> Runner | None:
    """None for this process."""
    if local or (workers is None and index.samples <= SMALL and not os.environ.get("RAY_ADDRESS")):
        return None
    from swav_platform.cluster.batch.embed import on_cluster

    return on_cluster(workers)


class _Lines:
    """Says how far the work is, now and then, where no bar is shown."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if console.stderr.is_terminal or now - self._said < _SAY:
            return
        self._said = now
        pace = (done - self._first[1]) / (now - self._first[0])
        left = duration((total - done) / pace) if pace else "unknown time"
        console.say(f"{done:,} of {total:,} images, {pace:,.0f} a second, {left} left")
