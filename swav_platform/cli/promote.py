"""swav promote."""

from __future__ import annotations

import click

from swav_platform.cli import console
from swav_platform.errors import UsageError
from swav_platform.runs.folder import find


@click.command(
    epilog=console.examples(
        "swav promote mine",
        "swav promote mine --alias candidate",
        "swav promote mine --alias champion --tracking-uri http://mlflow:5000",
    )
)
@click.argument("run")
@click.option("--alias", default="champion", show_default=True, metavar="ALIAS", help="Name that the run's model gets.")
@click.option("--tracking-uri", metavar="URI", help="MLflow server or store (default: the one of the run).")
@click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
@console.json_option
def promote_command(run: str, alias: str, tracking_uri: str | None, out: str | None, as_json: bool) -> None:
    """Point an alias of MLflow's registry at the model of RUN.

    Registers the model first if that is still to be done, and sends metrics that MLflow lacks. Running it again
    changes nothing.
    """
    folder = find(run, out)
    if not folder.has("model/model.json"):
        raise UsageError(f"Run {folder.name} has no model yet ({folder.place}/model). Finish it with `swav pretrain … --resume`.")
    from swav_platform import registry

    uri = tracking_uri or registry.uri_of_run(folder)
    with folder.claimed():
        done = registry.complete(folder, uri, patience=0)
        registry.set_alias(uri, done["model_uri"], alias)
        if summary := folder.summary():
            folder.write_summary(summary | done)
    console.answer({"run": folder.name, **done, "alias": alias}, as_json)
