"""Linear support vector machines, one per class, as for VOC07: average precision, also from few positive images per class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

COSTS = (0.01, 0.1, 1.0, 10.0)
SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
DRAWS = 5
_NEGATIVES = 19  # for each positive image of a low-shot draw, as in MMSelfSup's lists


def machine(cost: float) -> LinearSVC:
    """The published machine (Goyal et al. 2019): squared hinge, positives of twice the weight."""
    return LinearSVC(C=cost, class_weight={1: 2, 0: 1}, loss="squared_hinge", tol=1e-4, max_iter=2000, random_state=0)


def svm(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], costs: Sequence[float] = COSTS
) -> dict[str, float]:
    """mAP in percent over classes, with labels bool [n, C] and features of unit length. Each class takes its best of `costs` by 3 folds.

    Also `top1`, the share of images whose class has the highest score, if every image of `test` has one class.
    """
    values, labels = train
    scores = np.stack([_scored((values, labels[:, c]), test[0], costs) for c in range(labels.shape[1])], axis=1)
    found = {"map": mean_average_precision(scores, test[1])}
    if (test[1].sum(1) == 1).all():
        found["top1"] = 100 * float((scores.argmax(1) == test[1].argmax(1)).mean())
    return found


def low_shot(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    cost: float = 1.0,
    seed: int = 0,
) -> dict[str, list[float]]:
    """mAP in percent of each draw, by `k1`, `k2` …: k positive images of each class and 19 k others, all drawn by (seed, k, draw).

    A k is left out if a class has fewer images.
    """
    values, labels = train
    found: dict[str, list[float]] = {}
    for k in shots:
        if labels.sum(0).min() < k:
            continue
        found[f"k{k}"] = []
        for draw in range(draws):
            rng = np.random.default_rng([seed, k, draw])
            columns = []
            for c in range(labels.shape[1]):
                positive, negative = np.flatnonzero(labels[:, c]), np.flatnonzero(~labels[:, c])
                others = rng.choice(negative, min(len(negative), _NEGATIVES * k), replace=False)
                rows = np.concatenate([rng.choice(positive, k, replace=False), others])
                columns.append(_fit(machine(cost), values[rows], labels[rows, c]).decision_function(test[0]))
            found[f"k{k}"].append(mean_average_precision(np.stack(columns, axis=1), test[1]))
    return found


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """In percent, over the classes that have an image."""
    present = np.flatnonzero(labels.any(0))
    return 100 * float(np.mean([average_precision_score(labels[:, c], scores[:, c]) for c in present]))


def _scored(train: tuple[np.ndarray, np.ndarray], queries: np.ndarray, costs: Sequence[float]) -> np.ndarray:
    """Scores of one class, the lowest of all where the training images do not tell it from others."""
    if train[1].all() or not train[1].any():
        return np.full(len(queries), -1e9)
    found: np.ndarray = _fitted(*train, costs).decision_function(queries)
    return found


def _fitted(values: np.ndarray, labels: np.ndarray, costs: Sequence[float]) -> LinearSVC:
    cost = costs[0]
    if len(costs) > 1 and min(labels.sum(), (~labels).sum()) >= 3:
        folds = StratifiedKFold(3)
        with _quiet():
            by_cost = [cross_val_score(machine(c), values, labels, cv=folds, scoring="average_precision").mean() for c in costs]
        cost = costs[int(np.argmax(by_cost))]
    return _fit(machine(cost), values, labels)


def _fit(svc: LinearSVC, values: np.ndarray, labels: np.ndarray) -> LinearSVC:
    with _quiet():
        fitted: LinearSVC = svc.fit(values, labels)
    return fitted


def _quiet() -> warnings.catch_warnings[None]:
    """2,000 iterations are part of the published machine, reached or not."""
    return warnings.catch_warnings(action="ignore", category=ConvergenceWarning)
