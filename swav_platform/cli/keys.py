"""swav keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.table import Table

from services.embeddings.edge import keys
from swav_platform.cli import console
from swav_platform.errors import UsageError


@click.group()
def keys_command() -> None:
    """Make, list and revoke the API keys of `swav serve --keys FILE`.

    The file holds hashes, never a key. A running service sees a change within a second.
    """


_file = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@keys_command.command(
    epilog=console.examples(
        "swav keys create keys.json --name web", "swav keys create keys.json --name ops --scopes admin --days 90"
    )
)
@_file
@click.option("--name", required=True, help="Name of the key, for lists and messages.")
@click.option("--scopes", default="embed,search", show_default=True, help="Of embed, search, images, admin; with commas.")
@click.option("--per-minute", type=click.IntRange(1), metavar="N", help="Images that the key may send in a minute.")
@click.option("--days", type=click.IntRange(1, 36500), metavar="N", help="Days until the key expires.")
@console.json_option
def create(file: Path, name: str, scopes: str, per_minute: int | None, days: int | None, as_json: bool) -> None:
    """Add a key to FILE and print it. It is shown this once."""
    chosen = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    if not chosen or set(chosen) - set(keys.SCOPES):
        raise UsageError(f"--scopes {scopes!r} is not valid. Name one or more of {', '.join(keys.SCOPES)}.")
    if not keys.NAME.fullmatch(name):
        raise UsageError(f"--name {name!r} is not valid. Use up to 64 letters, digits and the signs . _ -")
    known = dict(keys.read(file)) if file.exists() else {}
    if name in {key.name for key in known.values()}:
        raise UsageError(f"{file} has a key {name!r} already. Choose another name, or revoke that key first.")
    text, key = keys.make(name, chosen, per_minute, datetime.now(UTC) + timedelta(days=days) if days else None)
    keys.write(file, known | {key.id: key})
    told = {field: value for field, value in key.as_json().items() if field != "sha256"}
    console.answer({"key": text, **told, "file": str(file)}, as_json)


@keys_command.command("list")
@_file
@console.json_option
def list_(file: Path, as_json: bool) -> None:
    """Show the keys of FILE."""
    known = [{field: value for field, value in key.as_json().items() if field != "sha256"} for key in keys.read(file).values()]
    if as_json:
        console.answer({"keys": known}, as_json)
        return
    table = Table("name", "id", "scopes", "per minute", "expires", box=None)
    for key in known:
        limit, expires = key["per_minute"] or "", (key["expires"] or "")[:10]
        console.add_row(table, key["name"], key["id"], ",".join(key["scopes"]), str(limit), expires)
    console.show(table)


@keys_command.command(epilog=console.examples("swav keys revoke keys.json web"))
@_file
@click.argument("name")
@console.json_option
def revoke(file: Path, name: str, as_json: bool) -> None:
    """Remove the key NAME (or with that id) from FILE."""
    known = keys.read(file)
    kept = {key.id: key for key in known.values() if name not in (key.name, key.id)}
    if len(kept) == len(known):
        raise UsageError(f"{file} has no key {name!r}. It has {', '.join(sorted(key.name for key in known.values())) or 'none'}.")
    keys.write(file, kept)
    console.answer({"revoked": name, "left": len(kept), "file": str(file)}, as_json)
