"""swav index, pack, ledger."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from swav_platform.cli import console
from swav_platform.data.ledger import Ledger
from swav_platform.errors import UsageError


@click.command(
    epilog=console.examples(
        "swav index 'shards/*.tar' --out index",
        "swav index test.tar --out labelled --label folder",
    )
)
@click.argument("pattern", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="Folder of the index.")
@click.option("--label", help="Where labels come from, for evaluation only: folder, cls or json:FIELD.")
@console.json_option
def index_command(pattern: tuple[str, ...], out: str, label: str | None, as_json: bool) -> None:
    """Index the shards of PATTERN: what lies where in them. Reads headers only."""
    from swav_platform.data.index import build_index
    from swav_platform.data.sources import expand

    with console.progress() as bars:
        task = bars.add_task("index", total=None, note="shards")
        report = build_index(
            expand(pattern), Path(out), label=label, progress=lambda done, total: bars.update(task, completed=done, total=total)
        )
    console.answer({**dataclasses.asdict(report), "path": str(report.path)}, as_json)


@click.command(
    epilog=console.examples(
        "swav pack photos --out shards",
        "swav pack photos --out shards --samples-per-shard 2000",
    )
)
@click.argument("folder")
@click.option("--out", required=True, metavar="DIR", help="Folder for the shards.")
@click.option("--samples-per-shard", default=10_000, show_default=True, type=click.IntRange(1))
@console.json_option
def pack_command(folder: str, out: str, samples_per_shard: int, as_json: bool) -> None:
    """Pack a FOLDER of images, of any nesting and names, into shards."""
    from swav_platform.data.pack import pack

    with console.progress() as bars:
        task = bars.add_task("pack", total=None, note="files")
        report = pack(
            Path(folder),
            Path(out),
            samples_per_shard=samples_per_shard,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    console.answer({**dataclasses.asdict(report), "out": out}, as_json)


@click.command()
@click.argument("run", required=False)
@click.option("--check", metavar="LOG", help="Verify a sample log: every position exactly once.")
@click.option("--out", metavar="DIR", help="Folder of the runs.")
@console.json_option
def ledger_command(run: str | None, check: str | None, out: str | None, as_json: bool) -> int:
    """What became of every bad image of RUN, or with --check whether a sample log is exact."""
    if (run is None) == (check is None):
        raise UsageError("Say either the RUN whose ledger you want, or --check LOG.")
    if check is not None:
        from swav_platform.data.sample_log import check as check_log

        verdict = check_log(Path(check))
        console.answer(dataclasses.asdict(verdict), as_json=True)
        return 0 if verdict.ok else 1

    from swav_platform.run_folder import find

    path = find(str(run), out).ledger
    ledger = Ledger.read(path)
    if as_json:
        shards = [{"shard": shard, "count": count} for shard, count in ledger.shards()]
        console.answer({"outcomes": ledger.outcomes(), "shards": shards}, as_json=True)
    else:
        _show_ledger(ledger, path)
    return 0


def _show_ledger(ledger: Ledger, path: Path, most: int = 20) -> None:
    counts = ", ".join(f"{count:,} {word}" for word, count in ledger.outcomes().items())
    click.echo(f"Positions whose own image was refused: {counts or 'none'}")
    table = Table("image", "shard", "reason", "detail", box=None)
    bad = {(event.shard, event.key): event for event in ledger.events()}
    for event in list(bad.values())[:most]:
        console.add_row(table, event.key, event.shard, event.outcome.word, event.detail)
    if bad:
        Console().print(table)
        click.echo(f"{len(bad):,} images in all, with thumbnails where they could be made: {path}")
