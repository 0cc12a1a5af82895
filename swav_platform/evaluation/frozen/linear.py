"""Linear classifiers on frozen features: L-BFGS of scikit-learn, and SGD of torch with the published hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

COSTS = (0.001, 0.01, 0.1, 1.0)


def classifier(cost: float, iterations: int = 1000) -> Pipeline:
    """Multinomial logistic regression by L-BFGS on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=cost, max_iter=iterations, tol=1e-4))


def lbfgs(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], costs: Sequence[float] = COSTS, seed: int = 0
) -> dict[str, float]:
    """Top-1 in percent on `test`. The inverse regularisation is the best of `costs` on a tenth of `train`, stratified, drawn by `seed`."""
    values, labels = train
    cost = costs[0]
    if len(costs) > 1:
        rest, held = _held_out(labels, seed)
        cost = max(costs, key=lambda c: float(classifier(c).fit(values[rest], labels[rest]).score(values[held], labels[held])))
    return {"top1": 100 * float(classifier(cost).fit(values, labels).score(*test)), "cost": cost}


def _held_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit and rows to choose by."""
    counts = np.bincount(labels)
    classes = int((counts > 0).sum())
    size = max(classes, len(labels) // 10)
    stratify = labels if counts[counts > 0].min() >= 2 and size <= len(labels) - classes else None
    rest, held = train_test_split(
        np.arange(len(labels)), test_size=min(size, len(labels) // 2), random_state=seed, stratify=stratify
    )
    return rest, held


def sgd(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    epochs: int = 100,
    lr: float = 0.3,
    batch: int = 256,
    weight_decay: float = 1e-6,
    steps: Sequence[int] = (),
    classes: int = 0,
    seed: int = 0,
    standardise: bool = False,
) -> dict[str, float]:
    """Top-1 and top-5 in percent of a linear layer trained by SGD with momentum 0.9.

    The defaults are those of SwAV's linear evaluation (Caron et al. 2020, appendix): rate 0.3 for batches of 256, cosine to 0 over 100
    epochs. steps: epochs after which the rate is divided by 10, instead of the cosine. standardise: by mean and deviation of `train`, as
    a batch norm without weights. Images are not augmented here, since the features are fixed.
    """
    x, y = torch.from_numpy(train[0]).float(), torch.from_numpy(train[1])
    classes = classes or int(max(train[1].max(), test[1].max())) + 1
    if standardise:
        mean, deviation = x.mean(0), x.std(0).clamp_min(1e-5)
        x = (x - mean) / deviation
    layer = torch.nn.Linear(x.shape[1], classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01, generator=generator)
        layer.bias.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    schedule: torch.optim.lr_scheduler.LRScheduler = (
        torch.optim.lr_scheduler.MultiStepLR(optimiser, list(steps), 0.1)
        if steps
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimiser.zero_grad()
            F.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimiser.step()
        schedule.step()
    with torch.inference_mode():
        query = torch.from_numpy(test[0]).float()
        scores = layer((query - mean) / deviation if standardise else query)
    return accuracies(scores.numpy(), test[1])


def accuracies(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 in percent of scores [n, C]."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hits = best == labels[:, None]
    return {"top1": 100 * float(hits[:, 0].mean()), "top5": 100 * float(hits.any(1).mean())}
