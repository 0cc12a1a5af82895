"""swav evaluate, embed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swav_platform.atomic import write_text
from swav_platform.cli import console
from swav_platform.cli.evaluations import several, single
from swav_platform.cli.evaluations.options import steps_done
from swav_platform.runs.folder import RunFolder, find
from swav_platform.runs.storage import join

if TYPE_CHECKING:
    from swav_platform.data.index.lookup import Index


@click.group()
def evaluate_command() -> None:
    """Evaluate an encoder on labelled shards. Labels never influence pretraining."""


for _command in (*single.COMMANDS, *several.COMMANDS):
    evaluate_command.add_command(_command)


def record_knn(folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Stores a result in the run's folder and in MLflow, at the last step of the run."""
    from swav_platform.evaluation.knn import results_file
    from swav_platform.registry import log_evaluation, uri_of_run

    write_text(results_file(folder), json.dumps(result))
    folder.publish("evaluation/knn.json")
    log_evaluation(folder, uri_of_run(folder), {"eval/knn_top1": result["knn_top1"]}, step=steps_done(folder))


@click.command(
    epilog=console.examples(
        "swav embed mine",
        "swav embed mine --data 'other/*.tar' --to other-embeddings --label folder",
    )
)
@click.argument("run")
@click.option("--data", multiple=True, metavar="PATTERN", help="Shards to embed (default: the training data of the run).")
@click.option("--to", metavar="DIR", help="Folder for embeddings.parquet (default: embeddings in the run's folder).")
@click.option("--label", help="Source of labels to show with neighbours: folder, cls or json:FIELD.")
@click.option("--no-thumbnails", is_flag=True, help="Do not store thumbnails.")
@click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
@console.json_option
def embed_command(
    run: str,
    data: tuple[str, ...],
    to: str | None,
    label: str | None,
    no_thumbnails: bool,
    out: str | None,
    as_json: bool,
) -> None:
    """Embed images with RUN's encoder, so that `swav serve` can search them."""
    folder = find(run, out)
    target = Path(to).expanduser() if to else None
    _, result = embed_images(folder, target, data=data, label=label, thumbnails=not no_thumbnails)
    console.answer(result, as_json)


def embed_images(
    folder: RunFolder,
    target: Path | None = None,
    *,
    data: Sequence[str] = (),
    label: str | None = None,
    thumbnails: bool = True,
) -> tuple[Index, dict[str, Any]]:
    """Embeds `data` (default: the training data) with a progress bar. Returns its index and the report of `embed`."""
    from swav_platform.data.datasets import labelled, open_index
    from swav_platform.data.index.build import build_index
    from swav_platform.data.index.lookup import Index
    from swav_platform.data.index.sources import expand
    from swav_platform.evaluation.embed import embed

    published, target = target is None, target or folder.path / "embeddings"
    config = folder.config()
    if data:
        build_index(expand(data, allow_pipe=config.data.allow_pipe), target / "index", label=label)
        index = Index.open(target / "index")
    else:
        trained = open_index(folder.info()["index"], allow_pipe=config.data.allow_pipe)
        index = labelled(trained, target / "index", label) if label else trained
    with console.progress() as bars:
        task = bars.add_task("embed", total=index.samples, note="images")
        result = embed(
            folder.package,
            index,
            target,
            config.data.images,
            thumbnails=thumbnails,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if published:
        folder.publish("embeddings")
        result["out"] = str(join(folder.place, "embeddings"))
    if label and not result["labelled"]:
        console.say(f"None of the {result['samples']:,} images has a label of source '{label}'; check --label.")
    return index, result
