"""swav demo: the complete workflow from images to answers over HTTP, in ./swav-demo."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from swav_platform.cli import console
from swav_platform.cli.demo_images import FEWEST_STEPS, Shards, affordable_steps, own_images, own_shards, photograph_shards
from swav_platform.cli.demo_search import search_set
from swav_platform.cli.embed import embed_images
from swav_platform.cli.evaluate import record_knn
from swav_platform.cli.pretrain import ProgressDisplay
from swav_platform.config import RECIPES, Config, load
from swav_platform.data.index.lookup import Index
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.sets.read import EmbeddingSet, open_set
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.folder import RunFolder

RECIPE = RECIPES / "demo.yaml"
BASELINES = ("knn_top1_random_init", "knn_top1_colour_histogram")  # with labels, the trained encoder must exceed both


@dataclass
class Stopwatch:
    """Seconds of each part of the demo, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


@click.command(
    epilog=console.examples(
        "swav demo",
        "swav demo --data 'my photos'",
        "swav demo --data 'shards/photos-{000..019}.tar' --out tried train.steps=100",
    )
)
@click.argument("overrides", nargs=-1, metavar="[key=value …]")
@click.option(
    "--data",
    metavar="PATTERN",
    help="Your own images: a folder with subfolders, or a pattern of shards (default: included photographs).",
)
@click.option(
    "--out", default="swav-demo", show_default=True, metavar="DIR", help="Output folder. An earlier demo in it is replaced."
)
@click.option("--seed", default=31, show_default=True, type=click.IntRange(0), help="Seed of all randomness.")
@console.json_option
def demo_command(overrides: tuple[str, ...], data: str | None, out: str, seed: int, as_json: bool) -> None:
    """Train an encoder on images, evaluate it, serve it and query it over HTTP, in minutes.

    Writes report.html and demo.json. key=value arguments override settings of configs/pretrain/demo.yaml.
    """
    place = Path(out).expanduser().absolute()
    # Checks the arguments before it removes an earlier demo.
    _recipe(["-"], place, seed, overrides, steps=FEWEST_STEPS if data else None)
    own = own_images(data, place) if data else None
    _clear(place)
    watch = Stopwatch()
    with watch.part("images"):
        shards = own_shards(own, place) if own else photograph_shards(place, seed)
        steps = affordable_steps(shards, place / "demo" / "index", load(RECIPE).train) if own else None
    config = _recipe(shards.sources, place, seed, overrides, steps=steps)
    result = run(config, shards, place, watch)
    console.answer(result, True) if as_json else _show(result, watch, place)


def run(config: Config, shards: Shards, place: Path, watch: Stopwatch) -> dict[str, Any]:
    """Pretrains, evaluates, embeds, serves, queries, reports. Returns the content of demo.json."""
    from swav_platform.cluster.pretrain import Watcher, pretrain

    started = time.monotonic() - sum(watch.seconds.values())
    with watch.part("pretrain"), ProgressDisplay() as display:
        trained = pretrain(config, watch=Watcher(display.indexing, display.started))
    folder = RunFolder(Path(trained["folder"]))
    with watch.part("evaluate"):
        scores = _score(folder, shards)
        if scores:
            record_knn(folder, scores)
    with watch.part("embed"):
        index, _ = embed_images(folder, label=None if shards.query is None else "folder")
    stored = open_set(folder.embeddings)
    with watch.part("search"):
        found = search_set(stored, folder.embeddings, place)
    with watch.part("serve and query"):
        url, answers = _serve_and_ask(folder, index, place)
    with watch.part("report"):
        report = _report(folder, stored, trained, scores, found, place)
    result = {
        "images": trained["images"],
        "steps": trained["steps"],
        "seconds": round(time.monotonic() - started, 1),
        **{k: trained[k] for k in ("images_per_second", "loss_first", "loss_last")},
        **{k: scores.get(k) for k in ("knn_top1", *BASELINES)},
        "quarantined": trained["quarantined"],
        "prototypes_used": report["prototypes_used"],
        **{k: found[k] for k in ("near_duplicates", "outliers")},
        "model_uri": trained["model_uri"],
        "run_id": trained["run_id"],
        "report": str(place / "report.html"),
        "service_url": url,
        "ok": not scores or all(scores["knn_top1"] > scores[baseline] for baseline in BASELINES),
        "timings": watch.seconds,
        "answers": answers,
    }
    (place / "demo.json").write_text(json.dumps(result, indent=1))
    return result


def _clear(place: Path) -> None:
    """Removes an earlier demo. Raises UsageError if the folder has other content."""
    if place.exists() and any(place.iterdir()):
        if not (place / ".swav-demo").is_file():
            raise UsageError(f"{place} is not empty and not an earlier demo; choose another folder with --out.")
        shutil.rmtree(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / ".swav-demo").touch()
    except OSError as error:
        raise UserError(f"The demo can't write to {place} ({error.strerror}); choose a writable folder with --out.") from None


def _recipe(sources: list[str], place: Path, seed: int, overrides: tuple[str, ...], *, steps: int | None) -> Config:
    """steps: for the user's own images, which get larger views; None for the included photographs."""
    chosen = [f"data.sources={json.dumps(sources)}", f"run.out={json.dumps(str(place))}", "run.name=demo", f"seed={seed}"]
    if steps is not None:
        chosen += ["views.large.size=64", "views.small.size=32", f"train.steps={steps}"]
    return load(RECIPE, [*chosen, *overrides])


def _score(folder: RunFolder, shards: Shards) -> dict[str, Any]:
    if shards.query is None:
        return {}
    from swav_platform.evaluation.features import colour_histogram
    from swav_platform.evaluation.knn import evaluate_knn

    with console.progress() as bars:
        task = bars.add_task("knn", total=None, note="images")
        return evaluate_knn(
            folder,
            shards.sources[0],
            shards.query,
            label="folder",
            baselines={"knn_top1_colour_histogram": colour_histogram},
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )


def _serve_and_ask(folder: RunFolder, index: Index, place: Path) -> tuple[str, dict[str, Any]]:
    """Starts `swav serve`, sends each kind of query over HTTP, stops it."""
    from swav_platform.client import Client
    from swav_platform.data.samples import read_samples

    images = [c for c in read_samples(index.lines(range(min(8, index.samples)))).values() if isinstance(c, bytes)]
    command = [sys.executable, "-m", "swav_platform", "serve", str(folder.path), "--port", "0", "--json"]
    with (
        (place / "service.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as service,
    ):
        try:
            assert service.stdout is not None
            line = service.stdout.readline()
            if not line:
                raise UserError(f"The service did not start: {(place / 'service.log').read_text().strip()}")
            url = json.loads(line)["url"]
            with Client(url) as client:
                embeddings, clusters, neighbours = (
                    client.embeddings(images),
                    client.clusters(images),
                    client.neighbors(images, k=5, thumbnails=False),
                )
        finally:
            service.terminate()
    good = [i for i, item in enumerate(embeddings["items"]) if "error" not in item]
    if not good:
        raise UserError(f"The service rejected all {len(images)} images: {embeddings['items'][0]['error']['message']}")
    first = good[0]
    return url, {
        "embedding_dim": len(embeddings["items"][first]["embedding"]),
        "clusters": clusters["items"][first]["clusters"][:3],
        "neighbors": neighbours["items"][first]["neighbors"],
    }


def _report(
    folder: RunFolder,
    stored: EmbeddingSet,
    trained: dict[str, Any],
    scores: dict[str, Any],
    found: dict[str, Any],
    place: Path,
) -> dict[str, Any]:
    from swav_platform.evaluation.report import largest_clusters, write_report

    config = folder.config()
    named = {"SwAV": "knn_top1", "random initialisation": "knn_top1_random_init", "colour histogram": "knn_top1_colour_histogram"}
    write_report(
        place / "report.html",
        title="SwAV demo: clusters and neighbours in these images",
        facts={
            "images seen": f"{trained['images']:,} at {trained['images_per_second']:.0f} a second",
            "loss": f"{trained['loss_first']:.3f} → {trained['loss_last']:.3f} (ln K {math.log(config.method.heads[0]):.3f})",
            "bad images": Ledger.read(folder.readable_ledger()).samples(),
            "near-duplicates": found["near_duplicates"],
            "outliers": found["outliers"],
            "model": trained["model_uri"],
            "MLflow run": trained["run_id"],
        },
        scores={name: scores[key] for name, key in named.items() if key in scores},
        losses=folder.losses(),
        prototypes=sum(config.method.heads),
        embeddings=stored,
        pages=found["pages"],
        explorer=_explorer(place),
    )
    return {"prototypes_used": len(largest_clusters(stored, 1, 1)[1])}


def _explorer(place: Path) -> str:
    """The command that serves the demo's model with the explorer."""
    return f"{Path(sys.executable).parent / 'swav'} serve {place / 'demo'}"


def _show(result: dict[str, Any], watch: Stopwatch, place: Path) -> None:
    table = Table("", "", show_header=False, box=None)
    for key, value in result.items():
        if key in ("answers", "timings", "ok", "service_url") or value is None:
            continue
        shown = f"{value:,.2f}" if isinstance(value, float) else str(value)
        console.add_row(table, key.replace("_", " "), shown)
    console.add_row(table, "duration", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in watch.seconds.items()))
    console.show(table)
    if result["quarantined"]:
        click.echo(f"\nBad images with reasons:  swav ledger {place / 'demo'}")
    click.echo(f"\nReport:  {place / 'report.html'}\nExplorer:  {_explorer(place)}")
