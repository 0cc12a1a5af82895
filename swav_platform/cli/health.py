"""swav health."""

from __future__ import annotations

import time

import click

from swav_platform.cli import console
from swav_platform.runs.folder import find


@click.command(
    epilog=console.examples(
        "swav health mine",
        "swav health mine --json",
        "swav health mine --html health.html",
    )
)
@click.argument("run")
@click.option(
    "--html", "page", metavar="FILE", type=click.Path(dir_okay=False), help="Write plots of all health metrics to an HTML page."
)
@click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
@console.json_option
def health_command(run: str, page: str | None, out: str | None, as_json: bool) -> None:
    """Judge whether RUN learns: in words, with a reason and a remedy.

    Works while it trains and afterwards, also for runs of older versions. Reads the run's metrics only.
    """
    from swav_platform.training.health.page import write_page
    from swav_platform.training.health.report import judged, lines_of

    target = console.page("--html", page) if page else None
    folder = find(run, out)
    report = judged(folder, time.time())
    if target:
        write_page(report, lines_of(folder), target)
    report |= {"page": str(target.absolute())} if target else {}
    if as_json:
        console.answer(report, as_json)
        return
    click.echo(f"{report['state']}, step {report['step']} of {report['steps']}: {report['because']}. {report['do']}".strip())
    console.answer(report["measures"] | ({"page": report["page"]} if target else {}), as_json)
