"""swav submit, status, logs, stop, list: pretraining jobs on a Ray cluster."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

import click
from rich.table import Table

from swav_platform.cli import console
from swav_platform.cli.pretrain import run_options
from swav_platform.config import load_with

address_option = click.option(
    "--address", metavar="URL", help="URL of the Ray dashboard (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)."
)


def _cluster(address: str | None) -> Any:
    from swav_platform.cluster.jobs import Cluster

    return Cluster(address)


@click.command(
    epilog=console.examples(
        "swav submit configs/pretrain/small.yaml --address http://head:8265 --data '/shared/shards/*.tar' --name mine run.out=/shared/runs --follow",
        "swav submit configs/pretrain/small.yaml --data shards --name here --wait",
    )
)
@run_options
@address_option
@click.option(
    "--follow", is_flag=True, help="Print the job's log to stderr until it ends; Ctrl-C detaches without stopping the job."
)
@click.option("--wait", is_flag=True, help="Wait for the end of the job and return its exit code.")
@console.json_option
def submit_command(
    config: str,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    name: str | None,
    out: str | None,
    address: str | None,
    follow: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Run `swav pretrain CONFIG` as a job of a Ray cluster.

    Submitting the name of a job that ended resumes its run. Paths must be valid on the nodes of the cluster.
    """
    settings = load_with(config, overrides, data=data, name=name, out=out)
    cluster = _cluster(address)
    job = cluster.submit(settings)
    console.say(f"submitted {job.id} to {cluster.address}")
    code = _watch(cluster, job, show=follow) if follow or wait else 0
    console.answer(cluster.report(cluster.job(job.id)), as_json)
    return code


@click.command()
@click.argument("name")
@address_option
@console.json_option
def status_command(name: str, address: str | None, as_json: bool) -> None:
    """Show the state and step of the newest job of the run NAME."""
    cluster = _cluster(address)
    console.answer(cluster.report(cluster.job(name)), as_json)


@click.command()
@click.argument("name")
@address_option
@console.json_option
@click.option(
    "--follow",
    is_flag=True,
    help="Continue until the job ends and return its exit code; Ctrl-C detaches without stopping the job.",
)
def logs_command(name: str, address: str | None, follow: bool, as_json: bool) -> int:
    """Print the output of the newest job of the run NAME."""
    cluster = _cluster(address)
    job = cluster.job(name)
    if follow:
        code = _watch(cluster, job, show=True)
        if as_json:
            console.answer(cluster.report(cluster.job(job.id)), as_json)
        return code
    if as_json:
        console.answer(cluster.report(job) | {"log": cluster.logs(job)}, as_json)
    else:
        click.echo(cluster.logs(job), nl=False)
    return 0


@click.command()
@click.argument("name")
@address_option
@console.json_option
def stop_command(name: str, address: str | None, as_json: bool) -> None:
    """Stop the newest job of the run NAME.

    Checkpoints are kept: submitting the same name again resumes the run.
    """
    cluster = _cluster(address)
    console.answer(cluster.report(cluster.stop(cluster.job(name))), as_json)


@click.command()
@address_option
@console.json_option
def list_command(address: str | None, as_json: bool) -> None:
    """List all jobs that swav submitted to the cluster, oldest first."""
    cluster = _cluster(address)
    reports = [cluster.report(job) | {"started": job.started} for job in cluster.jobs()]
    if as_json:
        click.echo(json.dumps({"jobs": reports}))
        return
    table = Table("id", "name", "state", "step", "started", box=None)
    for report in reports:
        step = f"{report['step']}/{report['steps']}" if report["step"] is not None else "-"
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report["started"])) if report["started"] else "-"
        console.add_row(table, report["id"], report["name"], report["state"], step, started)
    console.show(table)


def _watch(cluster: Any, job: Any, *, show: bool) -> int:
    """Waits for a job. Returns its exit code, or 0 if the user detached."""
    try:
        ended = cluster.follow(job, (lambda text: click.echo(text, nl=False, err=True)) if show else (lambda text: None))
    except KeyboardInterrupt:
        console.say(
            f"\nDetached; job {job.id} continues. To follow it again: swav logs {shlex.quote(job.name)} --follow --address {cluster.address}"
        )
        return 0
    if ended.state == "succeeded":
        return 0
    console.say(f"{ended.id} {ended.state}: {ended.message.splitlines()[0] if ended.message else 'no message'}")
    return ended.exit_code if ended.exit_code and ended.exit_code > 0 else 1
