"""kNN accuracy while a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from swav_platform.training.health.online_knn import TAGS, OnlineKnn, tags

CLASSES = 4


@dataclass
class Keys:
    """The part of a row that gives tags."""

    key: list[str]
    sample: np.ndarray


def drawn(step: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of 256 images around one centre per class, and their tags."""
    random = torch.Generator().manual_seed(step)
    classes = torch.randint(CLASSES, (256,), generator=random)
    features = torch.eye(16)[classes] + noise * torch.randn(256, 16, generator=random)
    row: Any = Keys([f"class {label}/{number}.jpg" for number, label in enumerate(classes)], np.arange(256) + 256 * step)
    return features.double(), tags(row).double()


@pytest.mark.parametrize(("noise", "least", "most"), [(0.1, 99.0, 100.0), (1000.0, 15.0, 35.0)])
def test_the_accuracy_follows_the_features(noise: float, least: float, most: float) -> None:
    knn, found = OnlineKnn(), list[dict[str, float]]()
    for step in range(8):
        found.append(knn.add(*drawn(step, noise)))
    assert found[:3] == [{}] * 3, "too few images to compare with"
    assert least <= found[-1]["health/knn"] <= most


def test_an_image_is_not_its_own_neighbour() -> None:
    knn = OnlineKnn()
    steps = [drawn(step, 1000.0) for step in range(3)]
    for _ in range(3):
        for step in steps:
            last = knn.add(*step)
    assert last["health/knn"] < 40.0, "the same features are in the bank"


def test_samples_without_a_folder_are_left_out() -> None:
    row: Any = Keys(["a/1.jpg", "2.jpg"], np.array([2**40 + 3, 5]))
    found = tags(row)
    assert found.shape == (2, TAGS)
    assert found[0, :2].sum() > 0
    assert found[1].tolist() == [0.0, 0.0, 0.0, 5.0]
    assert (found < 2**24).all()
    knn = OnlineKnn()
    for step in range(8):
        features, numbers = drawn(step, 0.1)
        numbers[:, :2] = 0
        assert knn.add(features, numbers) == {}
