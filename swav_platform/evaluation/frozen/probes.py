"""Linear probes on the maps of stem and stages, feature1 to feature5, pooled to the published sizes (Goyal et al. 2019)."""

from __future__ import annotations

import numpy as np

from swav_platform.evaluation.frozen.linear import sgd
from swav_platform.evaluation.frozen.taps import POOLED


def probes(
    train: tuple[dict[str, np.ndarray], np.ndarray],
    test: tuple[dict[str, np.ndarray], np.ndarray],
    *,
    epochs: int = 90,
    lr: float = 0.01,
    seed: int = 0,
) -> dict[str, float]:
    """Top-1 in percent of each map, by name. train, test: maps float16 [m, …] by name, labels int64 [m].

    Rate 0.01, divided by 10 after a third and two thirds of the epochs, weight decay 1e-4, on standardised maps: as MMSelfSup's heads on
    several layers, which have a batch norm in front.
    """
    steps = (epochs // 3, 2 * epochs // 3) if epochs >= 3 else ()
    return {
        name: sgd(
            (train[0][name], train[1]),
            (test[0][name], test[1]),
            epochs=epochs,
            lr=lr,
            weight_decay=1e-4,
            steps=steps,
            seed=seed,
            standardise=True,
        )["top1"]
        for name in POOLED
        if name in train[0]
    }
