"""swav submit, status, logs, stop, list: jobs of a Ray cluster."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.table import Table

from swav_platform.cli import console
from swav_platform.cli.pretrain import run_options
from swav_platform.config import load_with

address_option = click.option(
    "--address", help="The cluster's dashboard URL (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)."
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
@click.option("--follow", is_flag=True, help="Show the job's log; Ctrl-C detaches and the job goes on.")
@click.option("--wait", is_flag=True, help="Wait for the job and end with its exit code.")
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
    """Run `swav pretrain CONFIG` on a Ray cluster. A name that was lost is resumed."""
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
    """State and step of the newest job of a run."""
    cluster = _cluster(address)
    console.answer(cluster.report(cluster.job(name)), as_json)


@click.command()
@click.argument("name")
@address_option
@click.option("--follow", is_flag=True, help="Go on until the job ends; Ctrl-C detaches and the job goes on.")
def logs_command(name: str, address: str | None, follow: bool) -> int:
    """What the newest job of a run has printed."""
    cluster = _cluster(address)
    job = cluster.job(name)
    if follow:
        return _watch(cluster, job, show=True)
    click.echo(cluster.logs(job), nl=False)
    return 0


@click.command()
@click.argument("name")
@address_option
@console.json_option
def stop_command(name: str, address: str | None, as_json: bool) -> None:
    """Stop a run's job. What was committed stays; submitting the name again goes on from there."""
    cluster = _cluster(address)
    console.answer(cluster.report(cluster.stop(cluster.job(name))), as_json)


@click.command()
@address_option
@console.json_option
def list_command(address: str | None, as_json: bool) -> None:
    """All jobs of the cluster, oldest first."""
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
    """Exit code of the job, or 0 when the user detached from it."""
    try:
        ended = cluster.follow(job, (lambda text: click.echo(text, nl=False, err=True)) if show else (lambda text: None))
    except KeyboardInterrupt:
        console.say(f"\nDetached; {job.id} goes on. Come back with: swav logs {job.name} --follow --address {cluster.address}")
        return 0
    if ended.state == "succeeded":
        return 0
    console.say(f"{ended.id} {ended.state}: {ended.message.splitlines()[0] if ended.message else 'no message'}")
    return ended.exit_code if ended.exit_code and ended.exit_code > 0 else 1
