"""A run in MLflow from its start to its registered model. Everything can be repeated, and does what is still missing."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swav_platform.config.secrets import without_secrets
from swav_platform.failures import Kind, LogWaits, MachineFault, patiently
from swav_platform.registry.card import Card, read_card
from swav_platform.registry.connect import connect, short_limits
from swav_platform.registry.errors import TrackingError, explained
from swav_platform.registry.models import register_package
from swav_platform.registry.points import EVALUATIONS, evaluations_of, final_steps
from swav_platform.registry.runs import end_run
from swav_platform.registry.tracker import sender_of
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.storage import storage_of

log = logging.getLogger("swav")

SAID_AFTER = 30.0  # seconds after which a wait is explained


def begin(folder: RunFolder, uri: str, card: Card) -> str | None:
    """Writes the card of a run and opens the run in MLflow. Returns its id; None, with a warning, if MLflow does not do it now.

    Raises UsageError for an address that is none of MLflow's.
    """
    card.write(folder)
    try:
        with short_limits(), explained(uri):
            sender_of(folder, uri)
    except TrackingError as error:
        log.warning(
            "Run %s is not recorded in MLflow yet: %s The run goes on and is recorded as soon as it works.", folder.name, error
        )
    return read_card(folder).run_id


def close(folder: RunFolder, uri: str, status: str) -> None:
    """Sets the status of a run that did not finish: FAILED or KILLED. Never raises an Exception; the run's own error matters more."""
    try:
        if (run_id := read_card(folder).run_id) is not None:
            end_run(uri, run_id, status)
    except Exception as error:
        log.warning("The status %s of run %s could not be recorded: %s", status, folder.name, error)


def complete(folder: RunFolder, uri: str, *, patience: float) -> dict[str, Any]:
    """Brings MLflow up to date with a trained run: metrics, model, status. Returns its run_id and model_uri.

    patience: seconds to wait for a server that does not answer. Raises TrackingError.
    """
    with _waiting_is_explained(uri):
        sender = _patiently(folder, uri, patience)
        run_id, model = str(read_card(folder).run_id), str(folder.info()["model_name"])
        try:
            with explained(uri):
                with short_limits():
                    sender.send(final_steps(folder))
                    sender.evaluations()
                if read_card(folder).log_checkpoints:
                    _log_checkpoints(connect(uri), run_id, folder)
                model_uri = register_package(uri, run_id, folder.fetched("model"), model)
        except BaseException:
            with contextlib.suppress(TrackingError):
                end_run(uri, run_id, "FINISHED")  # training did finish
            raise
        end_run(uri, run_id, "FINISHED")
        return {"run_id": run_id, "model_uri": model_uri}


def log_evaluation(folder: RunFolder, uri: str, metrics: Mapping[str, float], step: int) -> None:
    """Adds results to evaluations.jsonl and sends them to MLflow; with a warning if it does not take them now."""
    line = json.dumps({"step": step, "time": round(time.time(), 3), **metrics}) + "\n"
    folder.storage.put(EVALUATIONS, evaluations_of(folder) + line.encode())
    try:
        with short_limits(), explained(uri):
            run_id = read_card(folder).run_id
            status = None if run_id is None else connect(uri, create=False).get_run(run_id).info.status
            sender = sender_of(folder, uri)
            sender.evaluations()
            if status not in (None, "RUNNING"):
                end_run(uri, str(read_card(folder).run_id), status)
    except TrackingError as error:
        log.warning(
            "The result is in %s; MLflow will get it with `swav promote %s`. %s", folder.path, shlex.quote(folder.name), error
        )


def _patiently(folder: RunFolder, uri: str, patience: float) -> Any:
    last: TrackingError | None = None

    def once() -> Any:
        nonlocal last
        try:
            with short_limits(), explained(uri):
                return sender_of(folder, uri)
        except TrackingError as error:
            if not error.may_pass:
                raise
            last = error
            raise MachineFault(
                Kind.UNREACHABLE,
                f"MLflow at {without_secrets(uri)}",
                "no answer" if error.kind == "away" else "it answers with errors",
            ) from error

    try:
        return patiently(once, patience, LogWaits())
    except MachineFault:
        assert last is not None
        raise last from None


@contextlib.contextmanager
def _waiting_is_explained(uri: str) -> Iterator[None]:
    """Says what a slow upload waits for."""
    text = f"Still working: the model is on its way to MLflow at {without_secrets(uri)}, which takes its time."
    timer = threading.Timer(SAID_AFTER, lambda: log.warning(text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _log_checkpoints(client: Any, run_id: str, folder: RunFolder) -> None:
    """The kept checkpoints and the counts of the ledger as artifacts of the run."""
    for key in storage_of(folder.checkpoints).entries():
        name, _, file = key.partition("/")
        if file == "MANIFEST.json":
            checkpoint, place = folder.fetched(f"checkpoints/{name}"), f"checkpoints/{name}"
            there = {Path(each.path).name: each.file_size for each in client.list_artifacts(run_id, place)}
            if any(there.get(path.name) != path.stat().st_size for path in checkpoint.iterdir() if path.is_file()):
                client.log_artifacts(run_id, str(checkpoint), artifact_path=place)  # also after an upload that was interrupted
    if (written := folder.readable_ledger()).is_dir():
        from swav_platform.data.ledger.ledger import Ledger

        ledger = Ledger.read(written)
        summary = {"outcomes": dict(ledger.outcomes()), "shards": dict(ledger.shards())}
        client.log_dict(run_id, summary, "ledger.json")
