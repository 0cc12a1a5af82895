"""Solvers against scikit-learn on the same features, and measures against direct computation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from swav_platform.evaluation.features import Features, unit
from swav_platform.evaluation.frozen import clusters, linear, probes, retrieval, svm
from swav_platform.evaluation.knn import knn_top1

Data = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def data() -> tuple[Data, Data]:
    """Six overlapping classes: 1,500 rows to learn from, 1,000 to test on."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 16))
    labels = rng.integers(0, 6, 2500)
    values = (centres[labels] + rng.normal(scale=1.3, size=(2500, 16))).astype(np.float32)
    return (values[:1500], labels[:1500]), (values[1500:], labels[1500:])


def one_hot(side: Data) -> Data:
    return unit(side[0]), np.eye(6, dtype=bool)[side[1]]


def test_lbfgs(data: tuple[Data, Data]) -> None:
    train, test = data
    scaler = StandardScaler().fit(train[0])
    plain = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(train[0]), train[1])
    wanted = 100 * plain.score(scaler.transform(test[0]), test[1])
    assert linear.lbfgs(train, test, [0.1])["top1"] == pytest.approx(wanted, abs=0.1)
    assert linear.lbfgs(train, test)["top1"] == pytest.approx(wanted, abs=1.5)


def test_sgd_reaches_the_solution_of_the_same_objective(data: tuple[Data, Data]) -> None:
    train, test = data
    decay = 0.01
    ones = [np.hstack([side[0], np.ones((len(side[0]), 1), np.float32)]) for side in data]  # SGD decays the bias too
    plain = LogisticRegression(C=1 / (decay * len(train[0])), max_iter=1000, tol=1e-8, fit_intercept=False).fit(ones[0], train[1])
    got = linear.sgd(train, test, weight_decay=decay, epochs=100, batch=500, lr=0.5)
    assert got["top1"] == pytest.approx(100 * plain.score(ones[1], test[1]), abs=0.1)
    assert got["top5"] > got["top1"]
    assert linear.sgd(train, test, epochs=2, seed=1) == linear.sgd(train, test, epochs=2, seed=1)


def test_knn(data: tuple[Data, Data]) -> None:
    (x, y), (query, labels) = data
    vote = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)).fit(x, y)
    bank, test = (Features(unit(v), [str(c) for c in side], Counter()) for v, side in ((x, y), (query, labels)))
    assert knn_top1(bank, test, 20, 0.1) == pytest.approx(100 * vote.score(query, labels), abs=0.1)


def test_svm(data: tuple[Data, Data]) -> None:
    train, test = one_hot(data[0]), one_hot(data[1])
    scores = []
    for c in range(6):
        plain = LinearSVC(C=1.0, class_weight={1: 2, 0: 1}, max_iter=2000).fit(train[0], train[1][:, c])
        scores.append(plain.decision_function(test[0]))
    wanted = 100 * np.mean([average_precision_score(test[1][:, c], scores[c]) for c in range(6)])
    got = svm.svm(train, test, [1.0])
    assert got["map"] == pytest.approx(wanted, abs=0.1)
    assert got["top1"] == pytest.approx(100 * (np.argmax(scores, 0) == data[1][1]).mean(), abs=0.1)
    assert svm.svm(train, test, [1e-6, 1.0])["map"] == pytest.approx(wanted, abs=0.1), "each class takes the better cost"


def test_low_shot_needs_few_images_and_leaves_out_what_does_not_exist(data: tuple[Data, Data]) -> None:
    train, test = one_hot(data[0]), one_hot(data[1])
    got = svm.low_shot(train, test, shots=(1, 8, 5000), draws=2)
    assert list(got) == ["k1", "k8"]
    assert len(got["k1"]) == 2
    assert np.mean(got["k8"]) > np.mean(got["k1"])
    assert got == svm.low_shot(train, test, shots=(1, 8), draws=2)


def test_several_labels_per_image(data: tuple[Data, Data]) -> None:
    train, test = one_hot(data[0]), one_hot(data[1])
    test[1][:, 0] |= test[1][:, 1]
    assert "top1" not in svm.svm(train, test, [1.0])


def test_kmeans_and_agreement(data: tuple[Data, Data]) -> None:
    values, labels = unit(data[1][0]), data[1][1]
    found = KMeans(6, n_init=3, random_state=5).fit_predict(values)
    got = clusters.kmeans(values, labels, 6, seed=5)
    assert got["nmi"] == pytest.approx(100 * normalized_mutual_info_score(labels, found), abs=0.1)
    purity = sum(Counter(labels[found == c]).most_common(1)[0][1] for c in range(6)) / len(labels)
    assert got["purity"] == pytest.approx(100 * purity, abs=0.1)
    perfect = clusters.agreement(labels * 7 + 2, labels)
    assert perfect == {"nmi": 100, "ari": 100, "purity": 100, "used": 6}


def test_retrieval(data: tuple[Data, Data]) -> None:
    bank, query = (unit(data[0][0]), data[0][1]), (unit(data[1][0][:300]), data[1][1][:300])
    similar = query[0] @ bank[0].T
    precision = [average_precision_score(bank[1] == label, row) for label, row in zip(query[1], similar, strict=True)]
    got = retrieval.retrieval(bank, query, at=(1, 5))
    assert got["map"] == pytest.approx(100 * np.mean(precision), abs=0.01)
    nearest = np.argsort(-similar, axis=1)[:, :5]
    assert got["recall_at_5"] == pytest.approx(100 * (bank[1][nearest] == query[1][:, None]).any(1).mean())
    stranger = (query[0], np.full(300, 99))
    assert retrieval.retrieval(bank, stranger)["map"] == 0


def test_probes_take_each_map(data: tuple[Data, Data]) -> None:
    train, test = data
    sides = [({"feature1": x.astype(np.float16), "feature5": np.zeros_like(x, np.float16)}, y) for x, y in (train, test)]
    got = probes.probes(sides[0], sides[1], epochs=6)
    assert list(got) == ["feature1", "feature5"]
    assert got["feature1"] > got["feature5"] + 20
