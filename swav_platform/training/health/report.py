"""The report of `swav health`: the verdict of a run and its newest numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from swav_platform.failures import duration
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import NAME, WAITING, Health, health_in
from swav_platform.runs.metrics import read_metrics
from swav_platform.runs.records import metrics_in
from swav_platform.training.health.history import History
from swav_platform.training.health.verdict import HEALTHY, Judge

SILENT = 60.0  # seconds without a step, or ten usual intervals if that is longer, after which a run counts as waiting
SHOWN = ("train/", "health/", "data/images_per_second", "data/wait_share", "data/step_likeness", "data/copies_total")


def judged(folder: RunFolder, now: float) -> dict[str, Any]:
    """The verdict of a run with the measures of its newest logged step. now: in seconds since 1970."""
    judge = Judge(folder.config(), int(folder.info()["samples"]))
    for line in lines_of(folder):
        judge.add(line)
    health = judge.health if folder.summary() is not None else _unfinished(folder, judge, now)
    history = judge.subject.history
    newest = history.readings[-1].metrics if history.readings else {}
    measures = {k: round(v, 5) if math.isfinite(v) else None for k, v in newest.items() if k.startswith(SHOWN)}
    return {
        "run": folder.name,
        "steps": judge.subject.total,
        **asdict(health),
        "since": health.since or None,
        "measures": measures,
    }


def lines_of(folder: RunFolder) -> Iterator[Mapping[str, Any]]:
    """The record of a run, on this machine or in its object store."""
    if folder.metrics.is_file() or folder.url is None:
        yield from read_metrics(folder.path)
    else:
        yield from (json.loads(line) for line in metrics_in(folder.storage))


def _unfinished(folder: RunFolder, judge: Judge, now: float) -> Health:
    """A wait, the verdict that ended the run, silence, or what the metrics say."""
    noted, judged = _noted(folder), judge.health
    if noted is not None and noted.state == WAITING:
        return noted
    if noted is not None and noted.state not in HEALTHY and (judged.step is None or (noted.step or 0) > judged.step):
        return noted
    changed = folder.metrics.stat().st_mtime if folder.metrics.is_file() else 0.0
    silence = _silence(judge.subject.history, changed, now)
    if silence is None or judged.state not in HEALTHY:
        return judged
    last = judge.subject.history.readings[-1]
    because = f"no step has been logged for {duration(silence)}"
    do = "If the run was stopped, continue it with --resume; else see `swav status` and worker.log in the run's folder."
    return Health(WAITING, because, do, last.time or 0.0, last.step, "a step")


def _noted(folder: RunFolder) -> Health | None:
    try:
        return health_in(folder.storage.get(NAME))
    except FileNotFoundError:
        return None


def _silence(history: History, changed: float, now: float) -> float | None:
    """Seconds since the newest logged step, if that is unusually long. changed: time of the record's file, for lines without a time."""
    times = [reading.time for reading in history.readings if reading.time is not None] or [changed]
    if not history.readings or not times[-1]:
        return None
    usual = (times[-1] - times[0]) / max(len(times) - 1, 1)
    silence = now - times[-1]
    return silence if silence > max(SILENT, 10 * usual) else None
