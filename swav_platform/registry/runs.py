"""Runs and experiments in MLflow: found, restored, or made."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from typing import Any

from swav_platform.config import Config
from swav_platform.config.secrets import without_secrets
from swav_platform.registry.card import Card
from swav_platform.registry.connect import connect, short_limits, tracking_uri
from swav_platform.registry.errors import explained, kind_of
from swav_platform.runs.folder import runs_on_disk

log = logging.getLogger("swav")

PARAMS_PER_CALL = 100  # MLflow's limit
KEY_LENGTH, VALUE_LENGTH = 250, 500
UID = "swav.uid"
EXPERIMENT = "swav.experiment"


def open_run(uri: str, name: str, card: Card, artifacts: str | None = None) -> str:
    """The id of the run of `card`, which is RUNNING afterwards. Finds it again, restores it or makes it.

    artifacts: where a new experiment in a SQLite store has its files; None with a server. Raises TrackingError.
    """
    with short_limits(), explained(uri):
        client = connect(uri)
        run = _known(client, card, name)
        if run is None:
            if card.run_id is not None:
                log.warning(
                    "MLflow at %s does not have the run %s of %s any more; a new one records it.",
                    without_secrets(uri),
                    card.run_id,
                    name,
                )
            run = _found_or_made(client, name, card, artifacts)
        run_id = str(run.info.run_id)
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        try:
            _describe(client, run, card)
        except Exception as error:  # the run is of more use than its description
            if kind_of(error) in ("away", "busy"):
                raise
            log.warning("Settings of run %s are not recorded in MLflow: %s", name, without_secrets(str(error)))
        return run_id


def start_run(config: Config, run_id: str | None, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """`open_run` without a run's folder: the run with `run_id` if MLflow has it, else a new one. Returns its id."""
    uri, beside = tracking_uri(config), runs_on_disk(config.run.out) / "mlartifacts"
    card = Card(config.tracking.experiment, dict(tags), {key: str(value) for key, value in params.items()}, run_id=run_id)
    return open_run(uri, str(config.run.name), card, beside.as_uri() if uri.startswith("sqlite") else None)


def end_run(uri: str, run_id: str, status: str) -> None:
    """status: FINISHED, FAILED or KILLED. Raises TrackingError."""
    with short_limits(), explained(uri):
        connect(uri).set_terminated(run_id, status)


def _known(client: Any, card: Card, name: str) -> Any:
    """The run with the id of the card, restored if a user deleted it; None if it is gone for good or was never made."""
    if card.run_id is None:
        return None
    try:
        run = client.get_run(card.run_id)
    except Exception as error:
        if kind_of(error) == "missing":
            return None
        raise
    return _restored(client, run, name)


def _restored(client: Any, run: Any, name: str) -> Any:
    """`run`, active again; None if that is not possible."""
    try:
        experiment = client.get_experiment(run.info.experiment_id)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
            log.warning("The experiment %s was deleted in MLflow and has been restored for run %s.", experiment.name, name)
            run = client.get_run(run.info.run_id)
        if run.info.lifecycle_stage == "deleted":
            client.restore_run(run.info.run_id)
            log.warning("Run %s was deleted in MLflow and has been restored.", name)
            run = client.get_run(run.info.run_id)
    except Exception as error:
        if kind_of(error) in ("away", "busy"):
            raise
        return None
    return run


def _found_or_made(client: Any, name: str, card: Card, artifacts: str | None) -> Any:
    """A run with the card's uid. It exists if an earlier request made it and its answer was lost."""
    from mlflow.entities import ViewType

    experiment = _experiment(client, card.experiment, artifacts)
    for run in client.search_runs([experiment], f"tags.`{UID}` = '{card.uid}'", ViewType.ALL, max_results=1):
        if (restored := _restored(client, run, name)) is not None:
            return restored
    return client.create_run(experiment, run_name=name, tags={**card.tags, UID: card.uid})


def _describe(client: Any, run: Any, card: Card) -> None:
    """Settings and data set of a new run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    if not run.data.params:
        given = {_param_key(key): value.replace("\0", "")[:VALUE_LENGTH] for key, value in card.params.items()}
        params = [Param(key, value) for key, value in given.items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            client.log_batch(run.info.run_id, params=params[start : start + PARAMS_PER_CALL])
    if card.dataset and not (run.inputs and run.inputs.dataset_inputs):
        data = Dataset(source_type="local", schema=None, profile=None, **card.dataset)
        client.log_inputs(run.info.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def _param_key(key: str) -> str:
    """A setting's name as MLflow takes it. Groups of views and labels of nodes may have any names."""
    parts = [part if part.strip(".") else part.replace(".", "_") for part in re.sub(r"[^/\w.\- :]", "_", key).split("/")]
    return "/".join(part or "_" for part in parts)[:KEY_LENGTH]


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    """The id of the experiment `name`, also if it was renamed or deleted in MLflow's page; made if there is none."""
    found = client.get_experiment_by_name(name) or _renamed(client, name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts, tags={EXPERIMENT: name}))
        except Exception as error:
            if kind_of(error) != "exists":
                raise
        found = client.get_experiment_by_name(name)  # another run has just made it
    if found.lifecycle_stage != "deleted":
        return str(found.experiment_id)
    with contextlib.suppress(Exception):
        client.restore_experiment(found.experiment_id)
        log.warning("The experiment %s was deleted in MLflow and has been restored.", found.name)
        return str(found.experiment_id)
    other = f"{name} (2)"
    log.warning("The experiment %s is deleted in MLflow and can't be restored; runs go to %s.", name, other)
    return str(_experiment(client, other, artifacts))


def _renamed(client: Any, name: str) -> Any:
    """The experiment that was made as `name` and has another name now."""
    from mlflow.entities import ViewType

    if "'" in name:
        return None
    found = client.search_experiments(ViewType.ACTIVE_ONLY, 1, f"tags.`{EXPERIMENT}` = '{name}'")
    if not found:
        return None
    log.warning("The experiment %s is called %s in MLflow now; the run is recorded there.", name, found[0].name)
    return found[0]
