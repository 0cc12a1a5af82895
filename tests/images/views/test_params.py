"""Photometric parameters: their ranges and how often each change happens."""

from __future__ import annotations

import numpy as np

from swav_platform.config import Photometric
from swav_platform.images.views.params import COLUMN, GEOMETRY, NEUTRAL, ORDERS, PHOTOMETRIC, SLOTS, photometric_params
from swav_platform.images.views.randomness import uniforms

U = uniforms(31, np.arange(4000), 2, SLOTS)


def column(drawn: np.ndarray, name: str) -> np.ndarray:
    return drawn[..., COLUMN[name] - len(GEOMETRY)].ravel()


def test_the_published_recipe() -> None:
    drawn = photometric_params(U, Photometric())
    assert drawn.shape == (4000, 2, len(PHOTOMETRIC))
    assert drawn.dtype == np.float32
    for name, share in (("jitter", 0.8), ("grey", 0.2), ("solarise", 0.0)):
        assert set(np.unique(column(drawn, name))) <= {0, 1}
        assert abs(column(drawn, name).mean() - share) < 0.02, name
    for name, low, high in (("brightness", 0.2, 1.8), ("contrast", 0.2, 1.8), ("saturation", 0.2, 1.8), ("hue", -0.2, 0.2)):
        values = column(drawn, name)
        assert low <= values.min() < low + 0.01 * (high - low), name
        assert high - 0.01 * (high - low) < values.max() <= high, name
        assert abs(values.mean() - (low + high) / 2) < 0.02, name
    sigma = column(drawn, "blur_sigma")
    assert abs((sigma > 0).mean() - 0.5) < 0.02
    assert 0.1 <= sigma[sigma > 0].min() < 0.12
    assert 1.98 < sigma.max() <= 2
    orders = np.bincount(column(drawn, "order").astype(int), minlength=len(ORDERS))
    assert len(orders) == 24
    assert orders.min() > 250


def test_changes_are_independent_of_each_other() -> None:
    correlation = np.corrcoef(photometric_params(U, Photometric(solarise=0.5)).reshape(-1, len(PHOTOMETRIC)).T)
    assert np.abs(correlation - np.eye(len(PHOTOMETRIC))).max() < 0.05


def test_a_recipe_without_changes_is_neutral() -> None:
    nothing = Photometric(jitter=0, brightness=0, contrast=0, saturation=0, hue=0, grey=0, blur=0)
    drawn = photometric_params(U, nothing)
    drawn[..., COLUMN["order"] - len(GEOMETRY)] = 0
    np.testing.assert_array_equal(drawn, np.broadcast_to(NEUTRAL, drawn.shape))


def test_strong_jitter_has_no_negative_factors() -> None:
    drawn = photometric_params(U, Photometric(brightness=1.5))
    assert 0 <= column(drawn, "brightness").min() < 0.02
