"""Each evaluation that trains with labels as metric -> values, one value per seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from swav_platform.errors import UserError
from swav_platform.evaluation import plan
from swav_platform.evaluation.subject import Side, Subject
from swav_platform.evaluation.tuned.few import listed, share
from swav_platform.evaluation.tuned.recipes import FINETUNE, LINEAR, SEMI, Recipe
from swav_platform.evaluation.tuned.train import train_and_test


def scores_of(
    options: object,
    subject: Subject,
    sides: tuple[Side, Side],
    seeds: Sequence[int],
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, list[float]]:
    """Scores of fine-tuning, of few labels, or of a linear layer on augmented crops."""
    numbers, keys = _labels(sides)
    found: dict[str, list[float]] = {}
    for label, recipe, chosen in _parts(options, numbers[0], keys):
        for seed in seeds:
            scores = train_and_test(subject, sides, (chosen(seed), numbers[1]), recipe, seed, progress)
            for metric, value in scores.items():
                found.setdefault(f"{metric}{label}", []).append(value)
    return found


Part = tuple[str, Recipe, Callable[[int], dict[int, int]]]
"""Suffix of the metrics, recipe, and the training labels by seed."""


def _parts(options: object, labels: dict[int, int], keys: dict[int, str]) -> list[Part]:
    def every(seed: int) -> dict[int, int]:
        return labels

    if isinstance(options, plan.Linear):
        return [("", dataclasses.replace(LINEAR, epochs=options.epochs, head_lr=options.lr), every)]
    if isinstance(options, plan.Finetune):
        recipe = dataclasses.replace(FINETUNE, epochs=options.epochs, trunk_lr=options.trunk_lr, head_lr=options.head_lr)
        return [("", recipe, every)]
    assert isinstance(options, plan.Semi)
    return [_few(options, fraction, labels, keys) for fraction in options.fractions]


def _few(options: plan.Semi, fraction: float, labels: dict[int, int], keys: dict[int, str]) -> Part:
    published = SEMI[min(SEMI, key=lambda known: abs(np.log(known / fraction)))]
    recipe = dataclasses.replace(
        published,
        epochs=options.epochs,
        trunk_lr=published.trunk_lr if options.trunk_lr is None else options.trunk_lr,
        head_lr=published.head_lr if options.head_lr is None else options.head_lr,
        steps=tuple(sorted({max(1, options.epochs * step // published.epochs) for step in published.steps})),
    )

    def chosen(seed: int) -> dict[int, int]:
        if fraction in options.lists:
            return listed(labels, keys, Path(options.lists[fraction]).expanduser())
        return share(labels, fraction, seed)

    return f"_{100 * fraction:g}_percent", recipe, chosen


def _labels(sides: tuple[Side, Side]) -> tuple[tuple[dict[int, int], dict[int, int]], dict[int, str]]:
    """Class by sample number of both sides, and the keys of the training images."""
    named: list[dict[int, str]] = []
    keys: dict[int, str] = {}
    for side in sides:
        found: dict[int, str] = {}
        for start in range(0, len(side.numbers), 8192):
            for line in side.index.lines(side.numbers[start : start + 8192]):
                if line.label is not None:
                    found[line.number] = line.label
                    if side is sides[0]:
                        keys[line.number] = line.key
        if not found:
            raise UserError(
                f"The {side.name} images of {side.pattern} have no labels under '{side.label}'. Choose another --label."
            )
        named.append(found)
    place = {name: i for i, name in enumerate(sorted({*named[0].values(), *named[1].values()}))}
    train, test = ({number: place[label] for number, label in side.items()} for side in named)
    return (train, test), keys
