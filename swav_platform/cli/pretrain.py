"""swav pretrain."""

from __future__ import annotations

import functools
import json
import math
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import yaml
from rich.table import Table

from swav_platform.cli import console
from swav_platform.config import Config, load_with
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import WAITING, read_health
from swav_platform.runs.metrics import last_metrics, metrics_state

DRY_RUN_INDEX_BYTES = 2 * 2**30  # a dry run indexes local shards up to this size
LINE_INTERVAL = 10.0  # seconds between two lines of progress without a terminal


def run_options(command: Any, config_required: bool = True) -> Any:
    for option in reversed(
        (
            click.argument("config", required=config_required, metavar="CONFIG"),
            click.argument("overrides", nargs=-1, metavar="[key=value …]"),
            click.option("--data", multiple=True, metavar="PATTERN", help="Shards: paths, globs or {000..019} ranges, quoted."),
            click.option("--name", help="Name of the run (default: time and method)."),
            click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs)."),
        )
    ):
        command = option(command)
    return command


@click.command(
    epilog=console.examples(
        "swav pretrain configs/pretrain/small.yaml --data 'shards/*.tar' --name mine",
        "swav pretrain configs/pretrain/small.yaml --data 'shards/*.tar' --name mine --resume",
        "swav pretrain configs/pretrain/small.yaml --data shards --name longer train.epochs=50 train.workers=2",
    )
)
@functools.partial(run_options, config_required=False)  # --settings needs none
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint of the run, if it has one.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration, schedule and memory, and stop.")
@click.option(
    "--preview",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the views of the first images to an HTML page and stop.",
)
@click.option(
    "--settings", "list_settings", is_flag=True, help="Print every setting with its default, unit and meaning, and stop."
)
@console.json_option
def pretrain_command(
    config: str | None,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    name: str | None,
    out: str | None,
    resume: bool,
    dry_run: bool,
    preview: Path | None,
    list_settings: bool,
    as_json: bool,
) -> None:
    """Train an encoder on the images of --data with the recipe CONFIG.

    CONFIG is a YAML file; key=value arguments override its settings. See --settings for all of them. Results go to the run's
    folder and to MLflow.
    """
    if list_settings:
        _list_settings(as_json)
        return
    if config is None:
        raise UsageError("Missing argument CONFIG: name a YAML file, for example configs/pretrain/small.yaml.")
    page = console.page("--preview", preview) if preview else None
    settings = load_with(config, overrides, data=data, name=name, out=out)
    if dry_run and preview:
        raise UsageError("--dry-run and --preview exclude each other: remove one of them.")
    if dry_run:
        _dry_run(settings, as_json)
        return
    if page:
        from swav_platform.rows.preview import preview as write_preview
        from swav_platform.training.preflight import image_warnings

        for warning in image_warnings(settings):
            console.say(f"warning: {warning}")
        console.answer(write_preview(settings, page), as_json)
        return
    from swav_platform.cluster.pretrain import Watcher, pretrain

    with ProgressDisplay() as display:
        result = pretrain(settings, resume=resume, watch=Watcher(display.indexing, display.started, console.say))
    console.answer(result, as_json)


def _list_settings(as_json: bool) -> None:
    """Every setting with type, default, unit, effect on results and meaning."""
    from swav_platform.config.table import COLUMNS, settings

    if as_json:
        click.echo(json.dumps({"settings": [asdict(each) for each in settings()]}))
        return
    table = Table(*COLUMNS, box=None)
    table.columns[0].no_wrap = True
    for each in settings():
        console.add_row(table, *each.cells())
    console.show(table)


def _dry_run(settings: Config, as_json: bool) -> None:
    """Prints the resolved configuration as YAML, followed by facts about the run as YAML comments; or one JSON object."""
    from swav_platform.training.preflight import preflight

    samples, missing = _look_at_data(settings)
    found = preflight(settings, samples).tree()
    found["warnings"] += missing
    tree = settings.model_dump(mode="json")
    if as_json:
        click.echo(json.dumps({"config": tree, **found}))
        return
    click.echo(yaml.safe_dump(tree, sort_keys=False), nl=False)
    known = {k: v for k, v in found["schedule"].items() if v is not None}
    click.echo("# schedule: " + ", ".join(f"{k} {console.readable(v)}" for k, v in known.items()))
    click.echo("# memory of a worker: " + ", ".join(f"{k} {_binary(v)}" for k, v in found["memory"].items()))
    sent = {
        k: _binary(v) if k.endswith("bytes") and v is not None else console.readable(v) for k, v in found["communication"].items()
    }
    told = ", ".join(f"{k} {v}" for k, v in sent.items()) if settings.most_workers > 1 else "none, one worker"
    click.echo(f"# communication of a worker, each step: {told}")
    click.echo(f"# {_feed(found['feed'], settings)}")
    if found["schedule"]["steps"] is None:
        click.echo(
            "# steps and images are known with local data of up to 2 GiB, data.index instead of --data (see `swav index`), "
            "train.steps or train.images"
        )
    for warning in found["warnings"]:
        click.echo(f"# warning: {warning}")


def _feed(feed: dict[str, Any], settings: Config) -> str:
    """What data tasks must and can deliver."""
    rate, each = feed["images_per_second"], feed["images_per_second_per_worker"]
    if feed["tasks"] is None:
        return f"data tasks: as many as cores are free, each about {rate:,.0f} images per second (estimate)"
    seconds = settings.train.batch / rate
    return (
        f"data tasks: {feed['tasks']} make about {rate:,.0f} images per second (estimate), {each:,.0f} for each worker; a worker that trains "
        f"more than that waits, so a step takes {seconds:.2g} s or more"
    )


def _look_at_data(settings: Config) -> tuple[int | None, list[str]]:
    """Count of samples, if it is cheap to determine, and warnings about missing local data, which may exist on the cluster.

    Does not contact remote storage.
    """
    from swav_platform.data.datasets import open_index, open_or_build
    from swav_platform.data.index.sources import expand
    from swav_platform.data.storage.cache import is_command

    data = settings.data
    if data.index:
        return open_index(data.index, allow_pipe=data.allow_pipe).samples, []
    patterns = [source if isinstance(source, str) else source.pattern for source in data.sources]
    local = [p for p in patterns if not ("://" in p or is_command(p) or p.startswith("@") or p.endswith(".txt"))]
    missing, shards = [], []
    for pattern in local:
        try:
            shards += [Path(shard) for shard in expand([pattern])]
        except UserError as error:
            missing.append(f"As seen from this machine: {error}")
    if missing or not local or len(local) < len(patterns) or any(shard.suffix != ".tar" for shard in shards):
        return None, missing
    try:
        if sum(shard.stat().st_size for shard in shards) > DRY_RUN_INDEX_BYTES:
            return None, []
        with tempfile.TemporaryDirectory() as folder:
            return open_or_build(data, Path(folder)).samples, []
    except (UserError, OSError) as error:
        return None, [f"As seen from this machine: {error}"]


def _binary(count: int) -> str:
    """Bytes with a binary unit."""
    unit = min(int(math.log2(count)) // 10, 4) if count else 0
    return f"{count / 2 ** (10 * unit):.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


class ProgressDisplay:
    """Shows a run's progress as its metrics.jsonl grows: a bar in a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._bars = console.progress()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ProgressDisplay:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._bars.stop()

    def indexing(self, done: int, total: int) -> None:
        if not self._bars.tasks:
            self._bars.add_task("index", total=total, note="shards")
        self._bars.update(self._bars.tasks[0].id, completed=done, total=total)

    def started(self, folder: RunFolder, steps: int) -> None:
        console.say(f"Run {folder.name} in {folder.place}")
        before = metrics_state(folder.path)  # written by an earlier attempt, whose last steps are repeated
        self._thread = threading.Thread(target=self._follow, args=(folder, steps, before), daemon=True)
        self._thread.start()

    def _follow(self, folder: RunFolder, steps: int, before: tuple[int, int] | None) -> None:
        """before: state of an earlier attempt's metrics, which are not shown."""
        ours, run_id, state = False, None, ""
        task = self._bars.add_task("pretrain", total=steps, note="starting Ray")
        said, told, warned = 0.0, 0, 0.0
        while True:
            last = self._stop.wait(0.5)
            if run_id is None and not console.stderr.is_terminal and (run_id := _run_id(folder)):
                click.echo(f"run_id {run_id}", err=True)  # MLflow may have been away at the start
            ours = ours or metrics_state(folder.path) != before
            line = last_metrics(folder.path) if ours else None
            waiting = _waiting(folder.path)
            if waiting and not console.stderr.is_terminal and time.monotonic() - warned > LINE_INTERVAL:
                click.echo(waiting, err=True)
                warned = time.monotonic()
            verdict = _verdict(folder.path) if ours else None
            if verdict is not None and verdict[0] != state:
                state = verdict[0]
                console.say(f"health {state}: {verdict[1]}")
            if line is not None:
                done, note = line["step"] + 1, f"loss {line['loss']:.3f}"
                self._bars.update(task, completed=done, note=waiting or note)
                due = done != told and (last or not told or time.monotonic() - said > LINE_INTERVAL)
                if due and not console.stderr.is_terminal:
                    click.echo(f"step {done}/{steps} {note}", err=True)
                    said, told = time.monotonic(), done
            elif waiting:
                self._bars.update(task, note=waiting)
            if last:
                return


def _run_id(folder: RunFolder) -> str | None:
    try:
        found = folder.info()["run_id"]
    except UserError:
        return None
    return None if found is None else str(found)


def _verdict(run: Path) -> tuple[str, str] | None:
    """The verdict about a run, and its reason with the remedy. `swav status` reads such lines."""
    health = read_health(run)
    if health is None or health.state == WAITING or health.step is None:
        return None
    return health.state, f"{health.because}. {health.do}".strip()


def _waiting(run: Path) -> str | None:
    """What a run waits for, in words."""
    health = read_health(run)
    return str(health) if health is not None and health.state == WAITING else None
