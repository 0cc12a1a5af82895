"""The plan is a pure function, each epoch is a permutation, and rows mix many blocks."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swav_platform.data.order import plan as plan_module
from swav_platform.data.order.plan import Plan, PlanSpec

specs = st.builds(
    PlanSpec,
    samples=st.integers(1, 700),
    seed=st.integers(0, 2**63 - 1),
    row_size=st.integers(1, 70),
    block=st.integers(1, 40),
    window=st.integers(1, 20),
)


def epoch_of(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    rows = [plan.row(epoch * plan.rows_per_epoch + k) for k in range(plan.rows_per_epoch)]
    return np.concatenate([r.samples for r in rows]), np.concatenate([r.filler for r in rows])


@settings(max_examples=100, deadline=None)
@given(spec=specs, epoch=st.integers(0, 1000))
def test_each_epoch_contains_every_sample_once(spec: PlanSpec, epoch: int) -> None:
    samples, filler = epoch_of(Plan(spec), epoch)
    assert sorted(samples[~filler].tolist()) == list(range(spec.samples))
    assert filler.sum() == -spec.samples % spec.row_size
    assert not filler[: spec.samples].any()
    assert ((samples >= 0) & (samples < spec.samples)).all()


@settings(max_examples=60, deadline=None)
@given(spec=specs, rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_a_row_does_not_depend_on_earlier_calls(spec: PlanSpec, rows: list[int]) -> None:
    plan = pickle.loads(pickle.dumps(Plan(spec)))
    for row in reversed(rows):
        plan.row(row)
    for row in rows:
        one, other = plan.row(row), Plan(spec).row(row)
        assert (one.samples == other.samples).all()
        assert (one.filler == other.filler).all()
        assert one.positions.tolist() == list(range(row * spec.row_size, (row + 1) * spec.row_size))


@settings(max_examples=60, deadline=None)
@given(spec=specs, first=st.integers(0, 300), count=st.integers(0, 200))
def test_chunks_cover_the_rows_and_stay_within_a_window(spec: PlanSpec, first: int, count: int) -> None:
    plan = Plan(spec)
    chunks = plan.chunks(first, first + count)
    assert [row for a, b in chunks for row in range(a, b)] == list(range(first, first + count))
    for a, b in chunks:
        assert a // plan.rows_per_epoch == (b - 1) // plan.rows_per_epoch
    if spec.samples > spec.row_size + spec.block * spec.window:
        whole = [b - a for a, b in plan.chunks(0, plan.rows_per_epoch)]
        assert max(whole) <= -(-spec.block * spec.window // spec.row_size)  # the most rows that start in one window
        assert len(whole) > 1


def test_chunks_from_inside_a_window_have_the_same_cuts() -> None:
    plan = Plan(PlanSpec(50_000, 1, 32))
    cuts = {a for a, _ in plan.chunks(0, 3000)}
    assert {a for a, _ in plan.chunks(700, 3000)} - {700} == {c for c in cuts if c > 700}


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_of(Plan(PlanSpec(1000, seed, 32)), epoch)[0].tolist()) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == len(orders)


def test_rows_mix_many_blocks_and_stay_within_their_window() -> None:
    plan = Plan(PlanSpec(50_000, 3, 32))
    blocks = [len(set((plan.row(k).samples // 16).tolist())) for k in range(200)]
    assert np.mean(blocks) > 24
    window = np.concatenate([plan.row(k).samples for k in range(32)])
    assert len(set((window // 16).tolist())) <= 65  # so neighbouring bytes are read together


def test_all_places_of_the_epoch_are_equally_likely() -> None:
    """Chi-square over 400 seeds of the tenth of the epoch that contains a sample (99.99 % point: 33)."""
    for sample in (0, 159):
        orders = (epoch_of(Plan(PlanSpec(160, seed, 16, 8, 4)), 0)[0].tolist() for seed in range(400))
        counts = np.bincount([order.index(sample) // 16 for order in orders], minlength=10)
        assert ((counts - 40) ** 2 / 40).sum() < 33, counts


@settings(max_examples=100, deadline=None)
@given(spec=specs, position=st.integers(0, 10**6), attempt=st.integers(1, 3))
def test_replacement_is_another_sample_of_the_window(spec: PlanSpec, position: int, attempt: int) -> None:
    plan = Plan(spec)
    own = int(plan.row(position // spec.row_size).samples[position % spec.row_size])
    replacement = plan.replacement(position, attempt)
    assert replacement == Plan(spec).replacement(position, attempt)
    assert 0 <= replacement < spec.samples
    if spec.samples >= 2 * spec.block and spec.window >= 3:
        assert replacement != own or spec.samples % (spec.block * spec.window) <= spec.block  # a last window of one sample


def test_replacements_are_near_and_vary() -> None:
    plan = Plan(PlanSpec(50_000, 3, 32))
    window = set(np.concatenate([plan.row(k).samples for k in range(32)]).tolist())
    drawn = {plan.replacement(p, a) for p in range(500) for a in (1, 2, 3)}
    assert drawn <= window
    assert len(drawn) > 500


def test_these_numbers_never_change() -> None:
    """Other numbers would change the meaning of every stored run."""
    plan = Plan(PlanSpec(50_000, 31, 8))
    assert plan.row(0).samples.tolist() == FIRST
    assert plan.row(123_456).samples.tolist() == FAR
    assert [plan.replacement(5, a) for a in (1, 2, 3)] == REPLACEMENTS


FIRST = [45202, 42947, 8544, 9196, 34680, 18659, 5391, 795]
FAR = [14718, 4712, 30939, 40113, 13864, 6130, 2472, 18951]
REPLACEMENTS = [37270, 18157, 42650]


def test_distant_rows_of_huge_data_sets_cost_the_same() -> None:
    """The cost of a row is the number of windows computed for it. benchmarks/stream_scale.py measures times."""
    plan = Plan(PlanSpec(10**9, 1, 64))
    for row in (0, 10**7, 10**12):
        plan_module._window.cache_clear()
        plan.row(row)
        assert 1 <= plan_module._window.cache_info().misses <= 2


def test_invalid_numbers() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1"):
        PlanSpec(0, 1, 32)
    with pytest.raises(ValueError, match="from 0"):
        Plan(PlanSpec(10, 1, 2)).row(-1)
