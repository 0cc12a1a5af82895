"""Each evaluation of frozen features as metric -> values, one value per seed or draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from swav_platform.errors import UserError
from swav_platform.evaluation import plan
from swav_platform.evaluation.features import Features
from swav_platform.evaluation.frozen import clusters, linear, probes, retrieval, svm
from swav_platform.evaluation.frozen.gather import Frozen, Labelled
from swav_platform.evaluation.frozen.labels import read_list, sets
from swav_platform.evaluation.knn import knn_top1
from swav_platform.models.package import Package

Scores = dict[str, list[float]]
"""Metric -> its values, one per seed or draw; one where nothing is drawn."""


def scores_of(name: str, options: object, frozen: Frozen, package: Package | None, seeds: Sequence[int]) -> Scores:
    """Scores of one evaluation. package: that of the features, for its prototypes; None at random initialisation."""
    learned = isinstance(options, plan.Linear | plan.Probes) or (isinstance(options, plan.Svm) and not options.labels)
    if learned and len(classes := np.unique(frozen.train.labels)) < 2:
        raise UserError(
            f"All training images have the label '{frozen.classes[classes[0]]}', and {name} needs two. Choose another --label."
        )
    if isinstance(options, plan.Knn):
        return _knn(options, frozen)
    if isinstance(options, plan.Linear):
        return _linear(options, frozen, seeds)
    if isinstance(options, plan.Probes):
        return _merged(
            [probes.probes(frozen.train.maps, frozen.test.maps, epochs=options.epochs, lr=options.lr, seed=s) for s in seeds]
        )
    if isinstance(options, plan.Svm):
        return _svm(options, frozen, seeds[0])
    if isinstance(options, plan.Clusters):
        return _clusters(options, frozen, package, seeds)
    assert isinstance(options, plan.Retrieval), name
    return _retrieval(options, frozen, seeds[0])


def _knn(options: plan.Knn, frozen: Frozen) -> Scores:
    bank, query = _features(frozen.train), _features(frozen.test)
    pairs = [(k, t) for k in options.k for t in options.temperature]
    found = {f"top1_k{k}_t{t:g}": [knn_top1(bank, query, k, t)] for k, t in pairs}
    first = f"top1_k{options.k[0]}_t{options.temperature[0]:g}"
    return {"top1": found[first], **(found if len(pairs) > 1 else {})}


def _features(side: Labelled) -> Features:
    return Features(side.units, [str(label) for label in side.labels], Counter())


def _linear(options: plan.Linear, frozen: Frozen, seeds: Sequence[int]) -> Scores:
    train, test = (frozen.train.values, frozen.train.labels), (frozen.test.values, frozen.test.labels)
    if options.solver == "lbfgs":  # nothing but the choice of the cost is drawn
        return {"top1": [linear.lbfgs(train, test, options.costs, seeds[0])["top1"]]}
    return _merged([linear.sgd(train, test, epochs=options.epochs, lr=options.lr, seed=seed) for seed in seeds])


def _svm(options: plan.Svm, frozen: Frozen, seed: int) -> Scores:
    if options.labels:
        listed = Path(options.labels).expanduser()
        train_sets, test_sets, in_train, in_test, _ = sets(frozen.train.keys, frozen.test.keys, read_list(listed), str(listed))
        train = (_unit(frozen.train.stored.values[in_train]), train_sets[in_train])
        test = (_unit(frozen.test.stored.values[in_test]), test_sets[in_test])
    else:
        train = (frozen.train.units, np.eye(len(frozen.classes), dtype=bool)[frozen.train.labels])
        test = (frozen.test.units, np.eye(len(frozen.classes), dtype=bool)[frozen.test.labels])
    whole = {name: [value] for name, value in svm.svm(train, test, options.costs).items()}
    few = svm.low_shot(train, test, options.shots, options.draws, seed=seed)
    return whole | {f"map_{k}": values for k, values in few.items()}


def _clusters(options: plan.Clusters, frozen: Frozen, package: Package | None, seeds: Sequence[int]) -> Scores:
    units, labels = frozen.test.units, frozen.test.labels
    count = options.kmeans or max(2, len(np.unique(labels)))
    if count > len(units):
        raise UserError(f"{len(units)} test images can't make {count} clusters. Set a smaller number with --kmeans.")
    found = {f"kmeans_{k}": v for k, v in _merged([clusters.kmeans(units, labels, count, seed) for seed in seeds]).items()}
    if package is not None and len(package.prototypes):
        with torch.inference_mode():
            projected = normalize(package.projection(torch.from_numpy(frozen.test.values)), dim=1)
            nearest = (projected @ package.prototypes.T).argmax(1).numpy()
        found |= {f"prototypes_{k}": [v] for k, v in clusters.agreement(nearest, labels).items()}
    return found


def _retrieval(options: plan.Retrieval, frozen: Frozen, seed: int) -> Scores:
    units, labels = frozen.test.units, frozen.test.labels
    rows = np.sort(np.random.default_rng(seed).permutation(len(units))[: options.queries])
    found = retrieval.retrieval((frozen.train.units, frozen.train.labels), (units[rows], labels[rows]), options.at)
    return {name: [value] for name, value in found.items()}


def _unit(values: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return scaled


def _merged(found: Sequence[dict[str, float]]) -> Scores:
    return {name: [each[name] for each in found] for name in found[0]}
