"""What the commands below `swav evaluate` share: options, the model that is evaluated, and where results go."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from swav_platform.atomic import write_text
from swav_platform.cli import console
from swav_platform.runs.folder import RunFolder

if TYPE_CHECKING:
    from swav_platform.evaluation.plan import Plan
    from swav_platform.evaluation.subject import Subject

F = TypeVar("F", bound=Callable[..., Any])

_MODEL = [
    click.argument("model", metavar="RUN|PACKAGE"),
    click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs)."),
    click.option("--to", metavar="DIR", help="Folder of results and features (default: evaluation in the run's folder)."),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto."),
]
_DATA = [
    click.option("--train", "--bank", required=True, metavar="PATTERN", help="Labelled shards to learn from."),
    click.option("--test", "--query", required=True, metavar="PATTERN", help="Labelled shards to test on."),
    click.option("--label", default="folder", show_default=True, help="Source of labels: folder, cls or json:FIELD."),
    click.option("--train-size", "--bank-size", type=click.IntRange(1), help="Use a random subset of this many (default: all)."),
    click.option("--test-size", "--query-size", type=click.IntRange(1), help="Use a random subset of this many (default: all)."),
    click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Repetitions with other random numbers."),
    click.option("--random-init/--no-random-init", default=True, show_default=True, help="Also evaluate untrained weights."),
]


def model_options(function: F) -> F:
    """RUN|PACKAGE, --out, --to, --device."""
    for option in reversed(_MODEL):
        function = option(function)
    return function


def data_options(function: F) -> F:
    """The labelled shards of both sides."""
    for option in reversed(_DATA):
        function = option(function)
    return function


@contextmanager
def evaluated(model: str, out: str | None, to: str | None, device: str) -> Iterator[Subject]:
    """Loads what RUN|PACKAGE names: a run, the folder of a package, or a models:/ or runs:/ URI."""
    import torch

    from swav_platform.evaluation.subject import subject
    from swav_platform.locate import locate

    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    with tempfile.TemporaryDirectory() as scratch:
        found = locate(model, Path(scratch), out=out)
        if to:
            folder = Path(to).expanduser()
        elif found.run:
            folder = found.run.path / "evaluation"
        else:
            name = json.loads((found.package / "model.json").read_bytes())["name"]
            folder = Path("evaluation") / name
        yield subject(found.package, found.run, folder, where)


def evaluate(subject: Subject, plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs a plan with progress bars, and keeps each result in the subject's folder and in MLflow."""
    from swav_platform.evaluation.run import run_plan

    with console.progress() as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, images: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, note="images")
                if not console.stderr.is_terminal:
                    console.say(f"{what} …" if total is None else f"{what} of {total:,} images …")
            bars.update(tasks[what], advance=images)

        def keep(result: dict[str, Any]) -> None:
            write(subject, f"{result['evaluation']}.json", result)

        results, transfer = run_plan(subject, plan, progress, keep)
    if transfer:
        write(subject, "transfer.json", transfer)
    _log(subject, results)
    return results, transfer


def _log(subject: Subject, results: Sequence[Mapping[str, Any]]) -> None:
    """Sends all figures to MLflow at once, at the last step of the run. A package has no run there."""
    if subject.run is None or not results:
        return
    from swav_platform.evaluation.tables.record import metrics_of
    from swav_platform.registry import log_evaluation, uri_of_run

    metrics = {f"eval/{name}": value for result in results for name, value in metrics_of(result).items()}
    log_evaluation(subject.run, uri_of_run(subject.run), metrics, step=steps_done(subject.run))


def write(subject: Subject, name: str, content: Any) -> None:
    """Writes a result beside the others: JSON, or text as it is."""
    text = content if isinstance(content, str) else json.dumps(content)
    write_text(subject.out / name, text)
    if subject.run is not None and subject.out == subject.run.path / "evaluation":
        subject.run.publish(f"evaluation/{name}")


def steps_done(folder: RunFolder) -> int:
    """The last step of a run."""
    if (summary := folder.summary()) is not None:
        return int(summary["steps"])
    return len(folder.metrics.read_bytes().splitlines()) if folder.metrics.is_file() else 0
