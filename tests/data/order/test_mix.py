"""Mixed sources: proportions, and how well rows mix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_platform.data.order.mix import MixedPlan, Part, sequence, shares
from swav_platform.data.order.plan import Plan, PlanSpec


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([0.7, 0.3], [7, 3]), ([1, 1, 1], [1, 1, 1]), ([2, 1], [2, 1]), ([0.5, 0.25, 0.25], [2, 1, 1]), ([1e-9, 1], [1, 10_000])],
)
def test_shares_are_exact_if_possible(weights: list[float], expected: list[int]) -> None:
    assert shares(weights) == expected


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_no_source_is_off_by_a_position(counts: list[int]) -> None:
    found = sequence(counts)
    given = np.stack([np.cumsum(found == source) for source in range(len(counts))])
    ideal = np.outer(counts, np.arange(1, len(found) + 1)) / len(found)
    assert np.abs(given - ideal).max() < 1
    assert given[:, -1].tolist() == counts


def mixed(sizes: list[int], weights: list[float]) -> MixedPlan:
    firsts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    parts = tuple(Part(*part) for part in zip(firsts[:-1], sizes, weights, strict=True))
    return MixedPlan(PlanSpec(sum(sizes), 5, 8, 4, 8), parts)


@pytest.mark.parametrize(("sizes", "weights"), [([1000, 500], [0.7, 0.3]), ([10, 2000, 37], [1, 5, 2]), ([64], [1.0])])
def test_each_source_uses_all_samples_before_it_repeats_one(sizes: list[int], weights: list[float]) -> None:
    plan = mixed(sizes, weights)
    samples = np.concatenate([plan.row(k).samples for k in range(400)])
    for part in plan.parts:
        own = samples[(samples >= part.first) & (samples < part.first + part.samples)]
        for first in range(0, len(own) - part.samples + 1, part.samples):
            assert len(set(own[first : first + part.samples].tolist())) == part.samples
    once = np.concatenate([plan.row(k).samples for k in range(plan.rows_once)])
    assert len(set(once.tolist())) == len(once)
    more = np.concatenate([plan.row(k).samples for k in range(plan.rows_once + 1)])
    assert len(set(more.tolist())) < len(more)


def test_rows_do_not_depend_on_earlier_calls() -> None:
    plan, other = mixed([900, 100], [3, 1]), mixed([900, 100], [3, 1])
    far = plan.row(10**9).samples.tolist()
    for k in range(20):
        other.row(k)
    assert other.row(10**9).samples.tolist() == far
    assert len(set(far)) > 1


def test_chunks_and_replacements() -> None:
    plan = mixed([900, 100], [3, 1])
    assert [row for a, b in plan.chunks(3, 200) for row in range(a, b)] == list(range(3, 200))
    assert plan.chunks(5, 5) == []
    for position in range(200):
        own = int(plan.row(position // 8).samples[position % 8])
        replacement = plan.replacement(position, 1)
        assert replacement != own
        assert (replacement < 900) == (own < 900)


def test_neighbours_are_far_apart_and_steps_contain_many_classes() -> None:
    """Shards sorted by class, the worst case: 100 classes of 500 samples, steps of 256."""
    plan = Plan(PlanSpec(50_000, 3, 64))
    order = np.concatenate([plan.row(k).samples for k in range(plan.rows_per_epoch)])[:50_000]
    place = np.empty(50_000, np.int64)
    place[order] = np.arange(50_000)
    apart = np.abs(np.diff(place))
    assert np.median(apart) > 200  # neighbours share a window of 1,024 samples; blocks are spread out
    assert (apart <= 1).mean() < 0.01
    steps = order[: 195 * 256].reshape(195, 256) // 500
    classes = np.array([len(set(step.tolist())) for step in steps])
    assert classes.mean() > 40  # 64 independent draws would give 47
    top = np.array([np.bincount(step).max() for step in steps]) / 256
    assert top.max() < 0.2
