"""swav evaluate all, transfer, compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from swav_platform.cli import console
from swav_platform.cli.evaluations.options import evaluate, evaluated, model_options, write
from swav_platform.errors import UsageError
from swav_platform.runs.folder import find


@click.command(
    name="all",
    epilog=console.examples(
        "swav evaluate all mine configs/evaluate/cifar10.yaml",
        "swav evaluate all mine configs/evaluate/all.yaml --train 'train-*.tar' --test 'test-*.tar'",
    ),
)
@model_options
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--train", metavar="PATTERN", help="Replaces data.train of the file.")
@click.option("--test", metavar="PATTERN", help="Replaces data.test of the file.")
@click.option("--label", help="Replaces data.label of the file.")
@click.option("--train-size", type=click.IntRange(1), help="Replaces data.train_size of the file.")
@click.option("--test-size", type=click.IntRange(1), help="Replaces data.test_size of the file.")
@console.json_option
def everything(
    model: str,
    out: str | None,
    to: str | None,
    device: str,
    plan: Path,
    train: str | None,
    test: str | None,
    label: str | None,
    train_size: int | None,
    test_size: int | None,
    as_json: bool,
) -> None:
    """Do all evaluations of a YAML file with one feature pass, and write report.md and report.json."""
    from swav_platform.evaluation.plan import read_plan

    todo = read_plan(plan, train=train, test=test, label=label, train_size=train_size, test_size=test_size)
    with evaluated(model, out, to, device) as subject:
        results, transfer = evaluate(subject, todo)
        report(subject, results, transfer, as_json)


@click.command(
    epilog=console.examples("swav evaluate transfer mine --data flowers=flowers-train.tar,flowers-test.tar --label folder")
)
@model_options
@click.option("--data", "sets", multiple=True, required=True, metavar="NAME=TRAIN,TEST", help="A data set; repeat it.")
@click.option("--label", default="folder", show_default=True, help="Source of labels: folder, cls or json:FIELD.")
@console.json_option
def transfer(model: str, out: str | None, to: str | None, device: str, sets: tuple[str, ...], label: str, as_json: bool) -> None:
    """Evaluate frozen features on several data sets: linear and knn, one table."""
    from swav_platform.evaluation.plan import checked

    data = [_data_set(text, label) for text in sets]
    tree = {"data": data[0], "evaluations": {}, "transfer": data}
    with evaluated(model, out, to, device) as subject:
        results, found = evaluate(subject, checked(tree, "swav evaluate transfer"))
        report(subject, results, found, as_json, name="transfer")


def _data_set(text: str, label: str) -> dict[str, str]:
    name, equals, patterns = text.partition("=")
    train, comma, test = patterns.rpartition(",")
    if not equals or not comma or not train or not test:
        raise UsageError(f"--data {text}: write NAME=TRAIN,TEST with two shard patterns.")
    return {"name": name, "train": train, "test": test, "label": label}


def report(subject: Any, results: list[dict[str, Any]], found: list[dict[str, Any]], as_json: bool, name: str = "report") -> None:
    """Writes NAME.md and NAME.json, and prints the page or the object."""
    from swav_platform.evaluation.tables.markdown import report as page

    text = page(f"Evaluation of {subject.name}", results, found)
    write(subject, f"{name}.md", text)
    content = {
        "results": {str(r["evaluation"]): r for r in results},
        "transfer": found,
        "report": str(subject.out / f"{name}.md"),
    }
    write(subject, f"{name}.json", content)
    click.echo(json.dumps(content, default=str) if as_json else text)


@click.command(epilog=console.examples("swav evaluate compare swav-31 swav-32 swav-33 simclr-31 mean-shift-31"))
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
@console.json_option
def compare(runs: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Put the stored results of runs on one table, by method, with 95 % confidence intervals."""
    from swav_platform.evaluation.tables.compare import comparison, comparison_table

    results: dict[str, dict[str, Any]] = {}
    budgets: dict[str, str] = {}
    for name in runs:
        folder = find(name, out)
        found = _stored(folder.fetched("evaluation"))
        if not found:
            raise UsageError(
                f"Run {folder.name} has no results yet. Evaluate it with `swav evaluate all {name} configs/evaluate/all.yaml`."
            )
        results[folder.name] = found
        budgets[folder.name] = _budget(folder)
    table = comparison(results, budgets)
    for line in table["unequal"]:
        console.say(f"These runs are not comparable in all respects: {line}.")
    click.echo(json.dumps(table) if as_json else comparison_table(table))


def _stored(folder: Path) -> dict[str, Any]:
    """The records of a run, by evaluation."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        tree = json.loads(path.read_bytes())
        if isinstance(tree, dict) and "evaluation" in tree:
            found[str(tree["evaluation"])] = tree
    return found


def _budget(folder: Any) -> str:
    """What a run learned from: images, network, data."""
    config, summary = folder.config(), folder.summary() or {}
    images = int(summary.get("steps", 0)) * config.train.batch
    return f"{images:,} images, {config.model.name}, index {folder.info()['index_digest'][:8]}"


COMMANDS = (everything, transfer, compare)
