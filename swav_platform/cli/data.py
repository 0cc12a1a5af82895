"""swav index, pack, ledger."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.table import Table

from swav_platform.cli import console
from swav_platform.data.index.exclusions import Exclusions
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.parts import forget_thumbnails
from swav_platform.errors import UsageError, UserError
from swav_platform.images.look import WORDS

if TYPE_CHECKING:
    from swav_platform.rows.odd_images import Group
    from swav_platform.runs.folder import RunFolder


@click.command(
    epilog=console.examples(
        "swav index 'shards/*.tar' --out index",
        "swav index 's3://bucket/set/*.tar' --out index",
        "swav index test.tar --out labelled --label folder",
        "swav index --out index --exclude taken-down.txt",
    )
)
@click.argument("pattern", nargs=-1)
@click.option("--out", required=True, metavar="DIR", help="Folder of the index.")
@click.option("--label", help="Source of labels, used for evaluation only: folder, cls or json:FIELD (also json:a.b).")
@click.option(
    "--members",
    multiple=True,
    metavar="EXTENSION",
    help="Use only images with this extension, such as jpg, seg.png or '*.png'; may be repeated.",
)
@click.option(
    "--missing",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What happens when a listed shard does not exist.",
)
@click.option("--report", "page", metavar="FILE", help="Write the report with example images to an HTML page.")
@click.option(
    "--exclude", metavar="FILE", help="Exclude samples from this and later versions; one KEY or SHARD<tab>KEY per line."
)
@click.option(
    "--weights", metavar="FILE", help="Balance sampling: CSV or Parquet with columns key and weight, or key and cluster."
)
@click.option("--from-wids", metavar="FILE", help="Index the shards listed by a wids index.")
@click.option(
    "--verify", is_flag=True, help="Compare the index in DIR with the headers of its shards; exit code 1 if they differ."
)
@click.option(
    "--allow-pipe", is_flag=True, help="Allow `pipe:COMMAND` patterns, also those in the index. They run shell commands."
)
@click.option("--cluster", is_flag=True, help="Read headers on the Ray cluster at RAY_ADDRESS, or on a local Ray.")
@console.json_option
def index_command(
    pattern: tuple[str, ...],
    out: str,
    label: str | None,
    members: tuple[str, ...],
    missing: Literal["stop", "skip"],
    page: str | None,
    exclude: str | None,
    weights: str | None,
    from_wids: str | None,
    verify: bool,
    allow_pipe: bool,
    cluster: bool,
    as_json: bool,
) -> int:
    """Index the images in the shards of PATTERN by reading tar headers only.

    PATTERN is a tar, a folder, a glob, a {000..019} range or a URL. Without PATTERN the shards of the index in DIR are indexed
    again; unchanged ones are not read.
    """
    from swav_platform.data.datasets import open_index

    if verify:
        from swav_platform.data.index.verify import verify as verify_index

        verdict = verify_index(open_index(out, allow_pipe=allow_pipe))
        console.answer(dataclasses.asdict(verdict), as_json)
        return 0 if verdict.ok else 1

    from swav_platform.data.index.balance import Weights
    from swav_platform.data.index.build import build_index
    from swav_platform.data.index.exclusions import Exclusions
    from swav_platform.data.index.lookup import Index
    from swav_platform.data.index.shard import Skipped
    from swav_platform.data.index.sources import FoundShards, find_shards
    from swav_platform.data.index.wids import compare, shards_of_wids

    to = console.page("--report", page) if page else None
    listed = shards_of_wids(from_wids) if from_wids else []
    if patterns := [*pattern, *(url for url, _ in listed)]:
        found = find_shards(patterns, allow_pipe=allow_pipe, missing=missing)
    else:
        again = open_index(out, allow_pipe=allow_pipe)
        found = FoundShards(again.shards.urls(), Skipped())
        label, members = label or again.label, members or again.members
    with console.progress() as bars, _reader(cluster) as read:
        task = bars.add_task("index", total=None, note="shards")
        report = build_index(
            found.shards,
            Path(out),
            label=label,
            members=members,
            missing=missing,
            left_out=found.left_out,
            exclude=Exclusions.of_file(exclude) if exclude else None,
            weights=Weights.of_file(weights) if weights else None,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
            read=read,
        )
    if report.whole:
        console.say(
            f"{report.whole:,} shards are read as a whole, because they are compressed or their storage has no range requests."
        )
    for complaint in compare(Index.open(out), listed):
        console.say(complaint)
    if to is not None:
        from swav_platform.rows.index_report import write_report

        write_report(Index.open(out), report, to)
        console.say(f"Wrote {to}")
    if not as_json:
        _answer({k: v for k, v in dataclasses.asdict(report).items() if k != "report"}, False)
        for line in report.lines():
            console.say(line)
        return 0
    _answer(dataclasses.asdict(report), True)
    return 0


@contextlib.contextmanager
def _reader(cluster: bool) -> Iterator[Any]:
    if not cluster:
        yield None
        return
    from swav_platform.cluster.indexing import cluster_reader

    with cluster_reader() as read:
        yield read


def _answer(report: dict[str, Any], as_json: bool) -> None:
    """Without --json, examples of skipped members follow the table."""
    if as_json:
        console.answer(report, True)
        return
    examples = report.pop("examples")
    console.answer(report, False)
    for reason, names in examples.items():
        console.say(f"{reason}: {', '.join(names)}{' ...' if report['skipped'][reason] > len(names) else ''}")


@click.command(
    epilog=console.examples(
        "swav pack photos --out shards",
        "swav pack photos --out shards --samples-per-shard 2000",
    )
)
@click.argument("folder")
@click.option("--out", required=True, metavar="DIR", help="Folder for the shards.")
@click.option("--samples-per-shard", default=10_000, show_default=True, type=click.IntRange(1), help="Most images in one shard.")
@console.json_option
def pack_command(folder: str, out: str, samples_per_shard: int, as_json: bool) -> None:
    """Pack all images in FOLDER and its subfolders into shards."""
    from swav_platform.data.pack import pack

    with console.progress() as bars:
        task = bars.add_task("pack", total=None, note="files")
        report = pack(
            Path(folder),
            Path(out),
            samples_per_shard=samples_per_shard,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if report.undecoded:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.undecoded.items()))
        console.say(
            f"Packed files in formats that can't be decoded: {kinds}. Runs replace them by other samples and list them in the "
            "ledger; convert them to use them."
        )
    _answer({**dataclasses.asdict(report), "out": out}, as_json)


@click.command(
    epilog=console.examples(
        "swav ledger mine",
        "swav ledger mine --html bad.html",
        "swav ledger mine --duplicates > copies.txt",
        "swav ledger --check log --json",
    )
)
@click.argument("run", required=False)
@click.option("--check", metavar="LOG", help="Check that the sample log LOG has every position exactly once; exit code 1 if not.")
@click.option("--html", metavar="FILE", help="Write an HTML page with the bad and odd images and their thumbnails.")
@click.option(
    "--duplicates", is_flag=True, help="List copies as SHARD<tab>KEY lines for `swav index --exclude`; one of each is kept."
)
@click.option("--weights", metavar="FILE", help="With --duplicates, write them as CSV for `swav index --weights`, with weight 0.")
@click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
@console.json_option
def ledger_command(
    run: str | None, check: str | None, html: str | None, duplicates: bool, weights: str | None, out: str | None, as_json: bool
) -> int:
    """List the bad images of RUN with reasons, or check a sample log.

    RUN is a name or a folder of a run.
    """
    if (run is None) == (check is None):
        raise UsageError("Give either RUN or --check LOG.")
    if weights is not None and not duplicates:
        raise UsageError("--weights needs --duplicates: add it.")
    if check is not None:
        from swav_platform.data.ledger.sample_log import check as check_log

        verdict = check_log(Path(check))
        console.answer(dataclasses.asdict(verdict), as_json)
        return 0 if verdict.ok else 1

    from swav_platform.runs.folder import find

    page = console.page("--html", html) if html is not None else None
    folder = find(str(run), out)
    if duplicates:
        _list_copies(folder, weights, as_json)
        return 0
    path = folder.readable_ledger()
    if folder.url is None and (excluded := Exclusions.of_index(Path(folder.info()["index"]).parent)):
        forget_thumbnails(path, excluded)
    ledger = Ledger.read(path)
    if page is not None:
        from swav_platform.atomic import write_text
        from swav_platform.data.ledger.page import ledger_page

        write_text(page, ledger_page(ledger, folder.name, _sections(folder)))
        console.say(f"Wrote {page}")
    if as_json:
        by_shard = ledger.samples_by_shard()
        shards = [{"shard": shard, "count": sum(words.values()), "reasons": words} for shard, words in by_shard.items()]
        images = [{"key": e.key, "shard": e.shard, "reason": e.outcome.word, "detail": e.detail} for e in ledger.bad()]
        odd = {group.name: group.total for group in _odd(folder)}
        counts = {"outcomes": ledger.samples_by_outcome(), "shards": shards, "images": images}
        console.answer({**counts, "samples": ledger.samples(), "positions": ledger.outcomes(), "odd": odd}, as_json=True)
    else:
        _show_ledger(ledger, folder.ledger)
        _show_odd(folder)
    return 0


def _odd(folder: RunFolder) -> list[Group]:
    from swav_platform.data.index.lookup import Index
    from swav_platform.data.ledger.contents import read_contents
    from swav_platform.rows.odd_images import odd

    contents = read_contents(folder.storage)
    try:
        return odd(contents, Index.open(folder.info()["index"])) if len(contents) else []
    except UserError as error:
        console.say(f"Copies and odd images are not shown, because the run's index is needed for their names. {error}")
        return []


def _show_odd(folder: RunFolder) -> None:
    told = {"copies": "have the same bytes as others"} | {look.word: text for look, text in WORDS.items()}
    for group in _odd(folder):
        names = ", ".join(line.key for line, _ in group.examples[:3])
        click.echo(f"{group.total:,} images of the first epoch {told[group.name]}: {names}{' …' if group.total > 3 else ''}")


def _sections(folder: RunFolder) -> list[tuple[str, list[tuple[str, str, bytes | None]]]]:
    """For the page: titles, and of each example its name, a detail and its picture."""
    from swav_platform.rows.odd_images import pictures

    groups, policy = _odd(folder), folder.config().data.images
    small = pictures([line for group in groups for line, _ in group.examples], policy)
    return [
        (
            f"{group.name}: {group.total:,} images of the first epoch",
            [(line.key, caption or line.name, small.get(line.number)) for line, caption in group.examples],
        )
        for group in groups
    ]


def _list_copies(folder: RunFolder, weights: str | None, as_json: bool) -> None:
    from swav_platform.atomic import write_text
    from swav_platform.data.index.lookup import Index
    from swav_platform.data.ledger.contents import read_contents, share_of
    from swav_platform.rows.odd_images import copies

    info = folder.info()
    contents = read_contents(folder.storage)
    groups = copies(contents, Index.open(info["index"]))
    if weights is not None:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["shard", "key", "weight"])
        rows.writerows([line.name, line.key, int(place == 0)] for group in groups for place, line in enumerate(group))
        write_text(Path(weights).expanduser(), text.getvalue())
    images = sum(map(len, groups))
    if as_json:
        listed = [{"shard": line.name, "key": line.key, "kept": group[0].key} for group in groups for line in group[1:]]
        console.answer({"images": images, "groups": len(groups), "compared": len(contents), "copies": listed}, as_json=True)
        return
    for group in groups:
        for line in group[1:]:
            click.echo(f"{line.name}\t{line.key}")
    share = share_of(int(info["samples"]))
    part = f" One image of {share} was compared." if share > 1 else ""
    console.say(
        f"{images:,} of {len(contents):,} images have the same bytes as others, and one of each group is kept ({len(groups):,}).{part}"
    )


def _show_ledger(ledger: Ledger, path: Path, most: int = 20) -> None:
    counts = ", ".join(f"{count:,} {word}" for word, count in ledger.samples_by_outcome().items())
    click.echo(f"Bad images: {counts or 'none'}. Affected positions: {ledger.quarantined:,}.")
    bad = ledger.bad()
    if not bad:
        return
    worst = Table("shard", "bad images", box=None)
    for shard, words in list(ledger.samples_by_shard().items())[:5]:
        console.add_row(worst, shard, ", ".join(f"{count:,} {word}" for word, count in words.items()))
    table = Table("image", "shard", "reason", "detail", box=None)
    for event in bad[:most]:
        console.add_row(table, event.key, event.shard, event.outcome.word, event.detail)
    console.show(worst)
    console.show(table)
    shown = f"The first {most} of {len(bad):,} images." if len(bad) > most else f"{len(bad):,} images."
    click.echo(f"{shown} The complete ledger with thumbnails is {path}; --html FILE or --json shows all of it.")
