"""Runs pretraining from shards to a registered model."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swav_platform import registry
from swav_platform.cluster import session, train
from swav_platform.cluster.report import Report
from swav_platform.cluster.room import Group
from swav_platform.cluster.warm import warm
from swav_platform.config import Config, from_tree
from swav_platform.data.datasets import Shards, check_one_pass, open_index, open_or_build, plan_of, shards_of
from swav_platform.data.freshness import changed_shards
from swav_platform.data.index.lookup import Index
from swav_platform.data.samples import CHANGED
from swav_platform.errors import UserError
from swav_platform.failures import Kind, MachineFault
from swav_platform.images.decoding.decode import codec_fingerprint
from swav_platform.methods.build import build_method
from swav_platform.models.encoders import check_name
from swav_platform.runs.folder import RunFolder, near_run, runs_folder
from swav_platform.runs.health_file import NAME, Health, read_health, write_health
from swav_platform.runs.records import discard
from swav_platform.runs.storage import is_url, join, place_of
from swav_platform.training import preflight
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.checkpoints.export import export_package
from swav_platform.training.checkpoints.resume import code_version, flat, known_run

log = logging.getLogger("swav")

_REPORTED = ("steps", "images", "loss_first", "loss_last", "images_per_second", "quarantined", "blank", "copies", "checkpoint")


@dataclass(frozen=True)
class Watcher:
    """Callbacks for progress."""

    indexing: Callable[[int, int], None] = lambda done, total: None  # counts of shards
    started: Callable[[RunFolder, int], None] = lambda folder, steps: None
    told: Callable[[str], None] = log.info  # a line about workers, restarts and waits


def pretrain(config: Config, *, resume: bool = False, watch: Watcher | None = None) -> dict[str, Any]:
    """Runs to the end and returns the keys that `swav pretrain --json` prints.

    resume: continue from the newest checkpoint, if there is one; a finished run returns its result again. Without it, a run that
    has a checkpoint is an error. A run without a checkpoint restarts from step 0, also with different settings.
    Raises UsageError or UserError.
    """
    watch = watch or Watcher()
    _check_names(config)
    session.check_address()
    config = with_absolute_paths(config)
    folder = RunFolder.at(join(place_of(str(config.run.out)), str(config.run.name)))
    started = time.monotonic()
    if resume and not (config.data.sources or config.data.index) and folder.exists():
        config = from_tree(
            config.model_dump(mode="json") | {"data": {**config.data.model_dump(mode="json"), "index": folder.info()["index"]}}
        )
    shards = None if folder.exists() else _check_data(config)
    with folder.claimed() as confirm:
        if resume and not folder.exists():
            log.warning(_new_run_warning(folder))
        known = known_run(folder, config, resume)
        uri = registry.tracking_uri(config)
        if (finished := folder.summary()) is not None:
            return finished if finished.get("model_uri") else _register(folder, uri, finished, config.tracking.patience)
        if folder.exists() and not known:
            log.warning(f"Run {folder.name} has no checkpoint yet and restarts from step 0.")
        index = _index(config, folder, watch, known, shards)
        for warning in preflight.warnings(config, preflight.schedule(config, index.samples)):
            log.warning(warning)
        card = _open_run(config, folder, index, known, uri)
        try:
            with _ready(config, folder, uri, card) as (group, local):
                with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
                    watch.started(folder, config.steps(index.samples))
                try:
                    job, report = _job(config, folder, index, uri), Report(folder.path, watch.told)
                    result = train.fit(job, group, report, local=local)
                finally:
                    _repeat_warnings(folder)
            confirm()
            export_package(folder, place_of(result["checkpoint"]))
        except BaseException as error:
            registry.close(folder, uri, "FAILED" if isinstance(error, Exception) else "KILLED")
            if not isinstance(error, Exception):
                _explain_resume(folder)
            raise
        summary = {
            "run": folder.name,
            "run_id": folder.info()["run_id"],
            **{k: result[k] for k in _REPORTED},
            "seconds": round(time.monotonic() - started, 2),
            "folder": str(folder.place),
            "model_uri": None,
        }
        folder.write_summary(summary)
        summary = _register(folder, uri, summary, config.tracking.patience)
        if summary["model_uri"]:
            discard(folder)
        return summary


@contextlib.contextmanager
def _ready(config: Config, folder: RunFolder, uri: str, card: registry.Card) -> Iterator[tuple[Group, bool]]:
    """`session.connected`, while MLflow opens the run: both take seconds."""
    with ThreadPoolExecutor(1, "tracking") as beside:
        opened = beside.submit(registry.begin, folder, uri, card)
        with session.connected(config) as (group, local):
            if local:
                warm(group.tasks)
            opened.result()
            yield group, local


def with_absolute_paths(config: Config) -> Config:
    """The configuration with a run name and absolute paths, because workers have other current folders."""
    tree = config.model_dump(mode="json")
    tree["run"]["name"] = config.run.name or time.strftime("%Y%m%d-%H%M%S") + f"-{config.method.name}"
    tree["run"]["out"] = str(runs_folder(config.run.out))
    for section, key in (("data", "index"), ("data", "exclude"), ("data", "sample_log"), ("model", "init")):
        if tree[section][key] and not is_url(tree[section][key]):
            tree[section][key] = os.path.abspath(os.path.expanduser(tree[section][key]))
    return from_tree(tree)


def _check_names(config: Config) -> None:
    """Fails early: otherwise a worker would be the first to detect an unknown name."""
    check_name(config.model)
    build_method(config)


def _new_run_warning(folder: RunFolder) -> str:
    near = near_run(folder.name, folder.runs)
    hint = f"{near} If so, stop this run." if near else ""
    return f"Run {folder.name} is new: {folder.runs} has no run of that name to resume.{hint}"


def _explain_resume(folder: RunFolder) -> None:
    """For an interrupted run. Called last, because reading checkpoints can outlast the time that a process manager grants."""
    with contextlib.suppress(UserError):  # all are damaged
        if (newest := checkpoints.latest_valid(folder.checkpoints)) is None:
            log.warning(f"Run {folder.name} has no checkpoint yet; the next start is from step 0.")
        else:
            log.warning(
                f"The newest checkpoint of run {folder.name} is {newest}: "
                f"run the command again with --resume to continue from it."
            )


def _check_data(config: Config) -> Shards | None:
    """The shards of the sources; None if an index is given. Called first, so that a typo does not leave a run folder behind."""
    if config.data.index:
        open_index(config.data.index, allow_pipe=config.data.allow_pipe)
        return None
    return shards_of(config.data)


def _index(config: Config, folder: RunFolder, watch: Watcher, known: Mapping[str, Any], shards: Shards | None) -> Index:
    """A resumed run uses the version of the index that it started with, also if shards were added or samples excluded since.

    Raises MachineFault, and notes it in health.json, if local shards have changed since they were indexed.
    """
    if known:
        folder.bring_index()
    index = open_or_build(config.data, folder.index, shards=shards, progress=watch.indexing)
    if known and index.digest != known["index_digest"] and (is_url(known["index"]) or Path(known["index"]).is_dir()):
        original = open_index(known["index"], allow_pipe=config.data.allow_pipe)
        if original.digest == known["index_digest"]:
            if not config.data.index and (difference := _difference(original, index)):
                log.warning(
                    f"Run {folder.name} goes on with the {len(original.shards):,} shards that it began with. {difference} "
                    f"To use the shards of now, start a new run."
                )
            index = original
    if changed := changed_shards(index):
        names = ", ".join(changed[:20]) + (", ..." if len(changed) > 20 else "")
        fault = MachineFault(Kind.CHANGED, f"{len(changed):,} of {len(index.shards):,} shards ({names})", CHANGED)
        write_health(folder.path, Health("broken", str(fault), "Index the shards again, or restore them.", time.time()))
        raise fault
    if (health := read_health(folder.path)) is not None and CHANGED in health.because:
        (folder.path / NAME).unlink(missing_ok=True)
    plan = plan_of(index, config.data, config.seed)
    check_one_pass(plan, config.data, config.rows_per_step, config.steps(index.samples))
    return index


def _difference(original: Index, now: Index) -> str:
    """What is new in the sources, and what they no longer have; empty if neither."""
    before, after = set(original.shards.urls()), set(now.shards.urls())
    new = [name for url, name in zip(now.shards.urls(), now.shards.names, strict=True) if url not in before]
    gone = [name for url, name in zip(original.shards.urls(), original.shards.names, strict=True) if url not in after]
    parts = [("The sources have new ones", new), ("They no longer name", gone)]
    return " ".join(
        f"{what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names):,})." for what, names in parts if names
    )


def _register(folder: RunFolder, uri: str, summary: dict[str, Any], patience: float) -> dict[str, Any]:
    """The summary of a trained run after its model is registered; unchanged, with a warning, if MLflow does not do it now."""
    if not folder.has("model/model.json"):  # of a run under torchrun, or deleted
        return summary
    try:
        summary = summary | registry.complete(folder, uri, patience=patience)
    except registry.TrackingError as error:
        log.warning(
            f"Run {folder.name} is complete and its model is {folder.place}/model, but it is not registered in MLflow. {error} "
            f"To register it later: swav promote {shlex.quote(str(folder.place))} --alias candidate, or the same command with --resume."
        )
        return summary
    folder.write_summary(summary)
    return summary


def _open_run(config: Config, folder: RunFolder, index: Index, known: Mapping[str, Any], uri: str) -> registry.Card:
    """Writes run.json and config.yaml, and returns what MLflow records of the run."""
    if known and known["index_digest"] != index.digest:
        raise UserError(
            f"The shards of run {folder.name} have changed since its start (index digest {index.digest[:12]}, was "
            f"{known['index_digest'][:12]}), and its index {known['index']} is gone. Restore the shards, name the index that it began "
            f"with by data.index= without --data, or start a new run with another --name."
        )
    if not known:
        folder.metrics.unlink(missing_ok=True)  # of an earlier attempt without a checkpoint
    tags = {
        "swav.run": folder.name,
        "swav.index_digest": index.digest,
        "swav.config_digest": config.digest(),
        "swav.codec": codec_fingerprint(),
        "swav.code_version": code_version(),
    }
    settings = flat(
        config.model_dump(mode="json", exclude={"tracking", "run"})
    )  # excluded: locations, not the experiment; may contain a password
    card = registry.Card(
        config.tracking.experiment,
        {key: str(value) for key, value in tags.items()},
        {key: str(value) for key, value in settings.items()},
        {"name": "index", "digest": index.digest[:36], "source": str(index.path)},
        config.tracking.log_checkpoints,
        config.tracking.system_metrics,
    )
    if known:
        before = registry.read_card(folder)
        card = replace(card, uid=before.uid, run_id=before.run_id)
    folder.write(
        config,
        index=folder.share_index(index.place),
        index_digest=index.digest,
        samples=index.samples,
        run_id=card.run_id,
        tracking_uri=uri,
        created=known.get("created"),
    )
    return card


def _job(config: Config, folder: RunFolder, index: Index, uri: str) -> train.TrainJob:
    shutil.rmtree(folder.path / "ray", ignore_errors=True)  # state that Ray Train kept of an earlier attempt
    return train.TrainJob(
        config=config.model_dump(mode="json"),
        index=folder.share_index(index.place),
        index_digest=index.digest,
        samples=index.samples,
        run_dir=str(folder.place),
        tracking_uri=uri,
    )


def _repeat_warnings(folder: RunFolder) -> None:
    """Prints the workers' warnings, which Ray does not forward."""
    with contextlib.suppress(OSError, UserError):
        for line in dict.fromkeys(folder.storage.get(folder.worker_log.name).decode("utf-8").splitlines()):
            log.warning(line)
