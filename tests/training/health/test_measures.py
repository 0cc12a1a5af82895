"""Measures against their definitions, and at the values that chance gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from swav_platform.methods.method import RowOutputs, StepOutputs
from swav_platform.training.health.measures import lidar, measures, rankme, separation
from swav_platform.training.health.probe import Seen, sample
from swav_platform.training.health.windows import Mixing, Usage


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_rankme_is_the_entropy_of_singular_values(shape: tuple[int, int]) -> None:
    z = drawn(*shape)
    singular = torch.linalg.svdvals(z)
    share = singular / singular.sum()
    assert rankme(z) == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-4)


def test_rankme_of_one_direction_and_of_all() -> None:
    assert rankme(torch.ones(40, 1, dtype=torch.float64) * drawn(1, 6)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.eye(6, dtype=torch.float64)) == pytest.approx(6, rel=1e-4)


def test_lidar_counts_the_dimensions_that_tell_images_apart() -> None:
    images, noise = drawn(200, 1, 8), 0.3 * drawn(200, 4, 8, seed=1)
    images[..., 3:] = 0
    assert lidar(images + noise) == pytest.approx(3, abs=0.7)


def test_separation_is_one_where_images_are_alike() -> None:
    views = drawn(1, 4, 16)  # views differ, images do not
    assert separation(views + drawn(200, 4, 16, seed=1)) == pytest.approx(1, abs=0.1)
    assert separation(drawn(200, 1, 16) + 0.1 * drawn(200, 4, 16, seed=1)) > 100


def test_no_value_is_not_finite() -> None:
    same = torch.ones(4, 3, 5, dtype=torch.float64) / math.sqrt(5)
    for embeddings in (same, same * float("nan"), same[:1], same[:, :1]):
        assert all(math.isfinite(value) for value in measures(embeddings, torch.zeros(len(embeddings), 0)).values())


def test_a_sample_is_the_same_for_any_number_of_ranks() -> None:
    rows = [RowOutputs(6 + k, torch.arange(5), torch.ones(5), drawn(3, 5, 4, seed=k), torch.zeros(3, 5, 0)) for k in range(3)]
    rows[1].weight[2] = 0
    seen = [Seen([drawn(5, 48, seed=10 + k)], [drawn(5, 7, seed=20 + k)]) for k in range(3)]
    everything = Seen([s.small[0] for s in seen], [s.features[0] for s in seen])
    whole, layout = sample(StepOutputs(2, tuple(rows)), everything, 3)
    parts = [sample(StepOutputs(2, (row,)), s, 3)[0] for row, s in zip(rows, seen, strict=True)]
    assert torch.equal(whole, sum(parts))
    small, embeddings, features, _ = layout.parts(whole)
    assert (small.shape, embeddings.shape, features.shape) == ((14, 48), (14, 3, 4), (14, 7)), "without the unreadable image"
    assert torch.allclose(embeddings[0], rows[0].embeddings[:, 0], atol=1e-6)


def test_a_prototype_is_dead_if_nothing_came_near_it_for_long() -> None:
    usage = Usage()
    counts = torch.full((20,), 4.0)
    counts[3] = 0
    assert usage.add(counts) == usage.add(counts) == {}, "too few to tell"
    assert usage.add(counts) == {"health/prototypes_dead": 1.0}
    assert usage.add(counts) == {}, "and from the beginning"


def test_steps_of_a_mixed_stream_differ_as_draws_do() -> None:
    mixed, alike = Mixing(), Mixing()
    for step in range(12):
        one = mixed.add(drawn(64, 48, seed=step))
        other = alike.add(drawn(64, 48, seed=step) + drawn(1, 48, seed=100 + step))
        assert bool(one) == (step >= 3)
    assert one["data/step_likeness"] == pytest.approx(1, abs=0.3)
    assert other["data/step_likeness"] > 20
