"""swav serve, query."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from services.embeddings.edge import keys as stored_keys
from services.embeddings.edge.hosts import read_hosts
from services.embeddings.server import listen
from services.embeddings.settings import ServiceSettings, Source
from swav_platform.cli import console
from swav_platform.errors import UsageError
from swav_platform.locate import Located, locate, tracking_uri_for
from swav_platform.runs.storage import is_url

DEFAULT_URL = "http://127.0.0.1:8000"
MAX_CLUSTERS = 20  # limit of the service for one image


@click.command(
    epilog=console.examples(
        "swav serve mine",
        "swav serve mine --embeddings other-embeddings --port 8080",
        "swav serve models:/mine@candidate --tracking-uri sqlite:///runs/mlflow.db",
    )
)
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all interfaces.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="TCP port; 0 chooses a free one.")
@click.option(
    "--keys",
    metavar="FILE",
    type=click.Path(path_type=Path),
    envvar="SWAV_KEYS",
    help="API keys that clients need, made by `swav keys create`; read again when it changes (default: none).",
)
@click.option("--no-auth", is_flag=True, help="Serve other machines without keys.")
@click.option(
    "--allow-origin", "origins", multiple=True, metavar="ORIGIN", help="Let pages of this origin ask from browsers (CORS)."
)
@click.option(
    "--allow-urls",
    "urls",
    multiple=True,
    metavar="HOST[,HOST…]",
    help="Fetch images that requests name by https URL on these hosts; .NAME for all names below it (default: none).",
)
@click.option(
    "--root-path", default="", metavar="PATH", help="Prefix under which a gateway publishes the service, such as /images."
)
@click.option(
    "--keep-alive",
    default=75,
    show_default=True,
    type=click.IntRange(1, 86400),
    metavar="SECONDS",
    help="Time that an idle connection stays open; keep it above the balancer's.",
)
@click.option(
    "--drain",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help="Time from a signal to the end in which /readyz says 503 and requests are still answered.",
)
@click.option(
    "--embeddings",
    metavar="DIR",
    help="Folder written by `swav embed`, or of such folders named by model digest (default: the run's).",
)
@click.option(
    "--index",
    metavar="DIR",
    help="Neighbour index of the embeddings, or pgvector://USER@HOST/DATABASE#TABLE (default: SET-neighbours, if it is there).",
)
@click.option("--runtime", default="auto", show_default=True, metavar="NAME", help="auto, torch, compile, bf16, onnx or int8.")
@click.option("--allow-int8", is_flag=True, help="Let auto take int8.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:NUMBER.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes that share the port.")
@click.option(
    "--poll", default=0.0, type=click.FloatRange(0), metavar="SECONDS", help="Look for new versions of the models this often."
)
@click.option("--also", multiple=True, metavar="NAME=MODEL", help="Another model, which requests choose by its name.")
@click.option("--canary", multiple=True, metavar="NAME=SHARE", help="Share (0 to 1) of the other requests that it gets.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of torch (default: torch's choice).")
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow of a models:/ or runs:/ URI (default: MLFLOW_TRACKING_URI, else the runs' mlflow.db).",
)
@click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
@console.json_option
def serve_command(
    model: str,
    host: str,
    port: int,
    keys: Path | None,
    no_auth: bool,
    origins: tuple[str, ...],
    urls: tuple[str, ...],
    root_path: str,
    keep_alive: int,
    drain: float,
    embeddings: str | None,
    index: str | None,
    runtime: str,
    allow_int8: bool,
    device: str,
    workers: int,
    poll: float,
    also: tuple[str, ...],
    canary: tuple[str, ...],
    threads: int | None,
    tracking_uri: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Serve embeddings, clusters and neighbours over HTTP.

    MODEL is a run, the folder of a model package, or an MLflow URI such as models:/NAME@candidate.
    """

    def ready(url: str) -> None:
        if as_json:
            click.echo(json.dumps({"url": url}))
        else:
            click.echo(f"Serving {model} at {url} (API: {url}/docs). Stop with Ctrl-C.")

    if embeddings and not _has_sets(Path(embeddings)):
        raise UsageError(f"There are no embeddings in {embeddings}; create them with `swav embed RUN --to {embeddings}`.")
    _check_open(host, keys, no_auth)
    _check_web(origins, root_path)
    hosts = tuple(part for text in urls for part in text.split(","))
    read_hosts(hosts)
    if drain and workers > 1:
        raise UsageError("--drain works with one process only. Leave out --workers, or let the balancer drain.")
    listen(host, port).close()  # reports a port in use before the slow imports
    first = _source(model, Path(embeddings) if embeddings else None, out, tracking_uri)
    shares = {name: _share(name, text) for name, text in map(_pair, canary)}
    others = tuple(
        replace(_source(place, None, out, tracking_uri), name=name, weight=shares.pop(name, 0.0))
        for name, place in map(_pair, also)
    )
    if shares:
        raise UsageError(f"--canary names {', '.join(shares)}, which no --also={next(iter(shares))}=MODEL defines.")
    from services.embeddings.server import serve
    from swav_platform.models.runtimes.choose import check_choice

    check_choice(runtime, device)
    settings = ServiceSettings(
        model=first.place if is_url(first.place) or ":/" in first.place else Path(first.place),
        embeddings=first.embeddings,
        index=Path(index) if index and "://" not in index else index,
        tracking_uri=first.tracking_uri,
        others=others,
        poll=poll,
        host=host,
        port=port,
        runtime=runtime,
        allow_int8=allow_int8,
        device=device,
        workers=workers,
        threads=threads,
        keys=keys,
        origins=origins,
        url_hosts=hosts,
        root_path=root_path,
        keep_alive=keep_alive,
        notice=drain,
    )
    serve(settings, on_ready=ready)


def _source(model: str, embeddings: Path | None, out: str | None, tracking_uri: str | None) -> Source:
    """Where the service finds the model, and again its next version."""
    if model.startswith(("models:/", "runs:/")):
        return Source(model, embeddings, tracking_uri=tracking_uri_for(model, out, tracking_uri))
    if is_url(model):
        return Source(model, embeddings)
    with tempfile.TemporaryDirectory() as scratch:
        found = locate(model, Path(scratch), out=out)
    if found.run is not None and found.run.url is not None:
        return Source(found.run.url, embeddings)
    return Source(str(found.package.absolute()), embeddings or _stored(found))


def _has_sets(folder: Path) -> bool:
    """Whether a folder is a set, or has sets in folders named by their models' digests."""
    from swav_platform.data.sets.read import has_set

    return folder.is_dir() and any(has_set(each) for each in (folder, *folder.iterdir()) if each.is_dir())


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"{text!r} is not NAME=VALUE. Write for example --also next=models:/photos@next --canary next=0.05.")
    return name, value


def _share(name: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"--canary {name}={text}: the share must be a number from 0 to 1.")
    return share


def _check_open(host: str, keys: Path | None, no_auth: bool) -> None:
    """Raises UsageError for a service that strangers can reach, unless it has keys or is to have none; UserError for bad keys."""
    if keys is not None:
        stored_keys.read(keys)
    keyed = keys is not None or bool(os.environ.get("SWAV_API_KEYS"))
    if no_auth and keyed:
        raise UsageError("--no-auth contradicts the API keys (--keys, SWAV_KEYS or SWAV_API_KEYS). Leave one of them out.")
    if not keyed and not no_auth and not _loopback(host):
        raise UsageError(
            f"Other machines could reach the service on {host}, and it has no API keys. Make one with `swav keys create keys.json "
            "--name me` and pass --keys keys.json, or pass --no-auth if a proxy or a closed network keeps strangers out."
        )


def _check_web(origins: tuple[str, ...], root_path: str) -> None:
    """Raises UsageError for origins and prefixes that no browser or gateway would send."""
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", origin):
            raise UsageError(f"--allow-origin {origin!r} is not an origin. Use for example https://app.example, without a path.")
    if root_path and not re.fullmatch(r"(/[\w.~-]+)+/?", root_path):
        raise UsageError(f"--root-path {root_path!r} is not a prefix of paths. Use for example /images.")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _stored(found: Located) -> Path | None:
    """The embeddings of the model's run, if there are any."""
    from swav_platform.data.sets.read import has_set

    folder = found.run.embeddings if found.run else None
    return folder if folder and has_set(folder) else None


@click.command(
    epilog=console.examples(
        "swav query neighbors photo.jpg --k 3",
        "swav query clusters *.jpg --url http://127.0.0.1:8080",
        "swav query models --json",
    )
)
@click.argument("what", type=click.Choice(["embeddings", "clusters", "neighbors", "models"]))
@click.argument("images", nargs=-1)
@click.option("--url", default=DEFAULT_URL, envvar="SWAV_URL", show_default=True, metavar="URL", help="Address of `swav serve`.")
@click.option(
    "--k", default=5, show_default=True, type=click.IntRange(1, 100), help="Neighbours per image, or clusters (at most 20)."
)
@console.json_option
def query_command(what: str, images: tuple[str, ...], url: str, k: int, as_json: bool) -> int:
    """Query a running service with IMAGES, or list its models.

    The exit code is 1 if the service rejects one of the images.
    """
    from swav_platform.client import Client

    if what != "models" and not images:
        raise UsageError(f"Give at least one image: swav query {what} photo.jpg")
    if what == "clusters" and k > MAX_CLUSTERS:
        raise UsageError(f"--k {k} is too large: the service returns at most {MAX_CLUSTERS} clusters per image.")
    with Client(url) as client:
        ask: dict[str, Callable[[], Any]] = {
            "embeddings": lambda: client.embeddings(images),
            "clusters": lambda: client.clusters(images, top=k),
            "neighbors": lambda: client.neighbors(images, k=k, thumbnails=None if as_json else False),
            "models": client.models,
        }
        found = ask[what]()
    if as_json:
        click.echo(json.dumps(found))
    elif what == "models":
        click.echo(json.dumps(found, indent=1))
    else:
        _show(what, found)
    return 1 if any("error" in item for item in found.get("items", [])) else 0


def _show(what: str, found: dict[str, Any]) -> None:
    table = Table("image", what, box=None)
    for item in found["items"]:
        console.add_row(table, str(item.get("name")), item["error"]["message"] if "error" in item else _line(what, item))
    console.show(table)


def _line(what: str, item: dict[str, Any]) -> str:
    if what == "embeddings":
        values = item["embedding"]
        return f"[{', '.join(f'{v:.4f}' for v in values[:6])}, … {len(values)} numbers]"
    if what == "clusters":
        return ", ".join(f"{c['cluster']} ({c['probability']:.2f})" for c in item["clusters"])
    return ", ".join(f"{n['key']} ({n['score']:.2f})" for n in item["neighbors"])
