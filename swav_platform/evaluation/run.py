"""Runs a plan: one feature pass for all evaluations of frozen features, then those that train."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swav_platform.errors import UsageError
from swav_platform.evaluation import plan as plans
from swav_platform.evaluation.frozen import tasks as frozen_tasks
from swav_platform.evaluation.frozen.gather import RANDOM, TRAINED, Frozen, gather
from swav_platform.evaluation.frozen.labels import read_list
from swav_platform.evaluation.subject import Side, Subject, open_side, warn_of_shared_shards
from swav_platform.evaluation.tables.record import record
from swav_platform.evaluation.tuned import tasks as tuned_tasks

Progress = Callable[[str, int, int | None], None]
"""(what is done, images more, all images of it)."""


def run_plan(
    subject: Subject,
    plan: plans.Plan,
    progress: Progress = lambda what, images, total: None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of a plan's evaluations, and of its transfer to other data sets. keep: gets each of the former once it is there."""
    seeds = [subject.seed + i for i in range(plan.seeds)]
    results = _on(subject, plan.data, "data", plan.evaluations.chosen(), seeds, plan.random_init, progress, keep)
    transfer = []
    for place, data in enumerate(plan.transfer):
        chosen = {"linear": plan.evaluations.linear or plans.Linear(), "knn": plan.evaluations.knn or plans.Knn()}
        found = _on(subject, data, f"transfer-{place}", chosen, seeds, plan.random_init, progress)
        transfer += [{**result, "data": data.name or data.train} for result in found]
    return results, transfer


def _on(
    subject: Subject,
    data: plans.Data,
    folder: str,
    chosen: dict[str, Any],
    seeds: list[int],
    random_init: bool,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> list[dict[str, Any]]:
    sides = open_sides(subject, data, folder)
    frozen = {name: options for name, options in chosen.items() if not _trains(options)}
    results, found, start = [], {}, time.monotonic()
    if frozen:
        found = _gathered(subject, sides, frozen, random_init, progress)
    passed = round(time.monotonic() - start, 1)
    for name, options in chosen.items():
        progress(name, 0, None)
        if name in frozen:
            results.append({**_frozen(subject, name, options, found, seeds), "features_seconds": passed})
        else:
            results.append(_tuned(subject, name, options, sides, seeds, progress))
        keep(results[-1])
    return results


def open_sides(subject: Subject, data: plans.Data, folder: str) -> tuple[Side, Side]:
    """Indexes both sides. Raises UsageError if a pattern matches nothing."""
    where = subject.out / "indexes" / folder
    train = open_side(where, "train", data.train, data.label, data.train_size, subject.seed)
    test = open_side(where, "test", data.test, data.label, data.test_size, subject.seed)
    warn_of_shared_shards(train, test)
    return train, test


def _trains(options: object) -> bool:
    return isinstance(options, plans.Finetune | plans.Semi) or (isinstance(options, plans.Linear) and options.solver == "sgd")


def _gathered(
    subject: Subject, sides: tuple[Side, Side], chosen: dict[str, Any], random_init: bool, progress: Progress
) -> dict[str, Frozen]:
    probes = chosen.get("probes")
    total = sum(len(side.numbers) for side in sides)
    several = isinstance(svm := chosen.get("svm"), plans.Svm) and svm.labels is not None
    if several and len(chosen) > 1 and any(not _has_labels(side) for side in sides):
        raise UsageError("A list of labels serves `svm` alone. Give the others labels with --label, or leave them out.")
    progress("features", 0, total)
    return gather(
        subject,
        sides,
        random_init=random_init,
        maps=probes.size if probes else 0,
        need_labels=not (several and len(chosen) == 1),
        progress=lambda images: progress("features", images, total),
    )


def _has_labels(side: Side) -> bool:
    return any(line.label is not None for line in side.index.lines(side.numbers[:1000]))


def _frozen(subject: Subject, name: str, options: Any, found: dict[str, Frozen], seeds: list[int]) -> dict[str, Any]:
    start = time.monotonic()
    own = found[TRAINED]
    scores = frozen_tasks.scores_of(name, options, own, subject.package, seeds)
    random = frozen_tasks.scores_of(name, options, found[RANDOM], None, seeds) if RANDOM in found else None
    sizes = (len(own.train.labels) or len(own.train.keys), len(own.test.labels) or len(own.test.keys))
    if isinstance(options, plans.Probes):
        sizes = (len(own.train.maps[1]), len(own.test.maps[1]))
    classes = set(own.classes)
    if isinstance(options, plans.Svm) and options.labels:
        classes = {label for labels in read_list(Path(options.labels).expanduser()).values() for label in labels}
    return record(
        name,
        subject,
        scores,
        baseline=random,
        sizes=sizes,
        classes=len(classes),
        refused=own.refused,
        options=options.model_dump(),
        seeds=seeds,
        seconds=time.monotonic() - start,
    )


def _tuned(
    subject: Subject, name: str, options: Any, sides: tuple[Side, Side], seeds: list[int], progress: Progress
) -> dict[str, Any]:
    start = time.monotonic()
    scores = tuned_tasks.scores_of(options, subject, sides, seeds, lambda images: progress(name, images, None))
    labels = {line.label for side in sides for line in side.index.lines(side.numbers[:100_000])} - {None}
    return record(
        name,
        subject,
        scores,
        sizes=(len(sides[0].numbers), len(sides[1].numbers)),
        classes=len(labels),
        refused={},
        options=options.model_dump(),
        seeds=seeds,
        seconds=time.monotonic() - start,
    )
