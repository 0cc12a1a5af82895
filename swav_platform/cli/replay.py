"""swav replay."""

from __future__ import annotations

from dataclasses import asdict

import click

from swav_platform.cli import console
from swav_platform.runs.folder import find


@click.command(
    epilog=console.examples(
        "swav replay mine --step 1234",
        "swav replay runs/mine --step 1234 --json",
    )
)
@click.argument("run")
@click.option("--step", type=click.IntRange(min=0), required=True, help="The step, as metrics.jsonl counts them (from 0).")
@click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
@console.json_option
def replay_command(run: str, step: int, out: str | None, as_json: bool) -> None:
    """Repeat a step of RUN, and name the first layer and the first image whose values are not finite.

    Starts at the newest checkpoint before the step and makes the steps in between, in this process. Writes nothing.
    """
    folder = find(run, out)
    from swav_platform.training.replay import replay

    with console.progress() as bars:
        task = bars.add_task("replay", total=None, note="")
        done = replay(folder, step, progress=lambda count, total: bars.update(task, completed=count, total=total))
    report = asdict(done)
    if not as_json and done.fault is not None:
        report |= report.pop("fault")
    console.answer({"run": folder.name, **report}, as_json)
