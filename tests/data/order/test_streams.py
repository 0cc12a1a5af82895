"""Streams: each row of the plan once, and different windows for each stream."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from swav_platform.data.order.plan import Plan, PlanSpec
from swav_platform.data.order.streams import Streams

SPECS = [(1000, 8, 4, 8), (1000, 7, 4, 8), (97, 8, 16, 64), (5, 8, 2, 2), (640, 8, 4, 8)]  # samples, row size, block, window


@pytest.fixture(params=SPECS, ids=str)
def plan(request: pytest.FixtureRequest) -> Plan:
    samples, row_size, block, window = request.param
    return Plan(PlanSpec(samples, 3, row_size, block, window))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_epoch_contains_each_row_of_the_plan_once(plan: Plan, count: int) -> None:
    dealt = Streams(plan, count)
    for epoch in range(3):
        rows = range(epoch * plan.rows_per_epoch, (epoch + 1) * plan.rows_per_epoch)
        ours = [dealt.row(k) for k in rows]
        assert sorted(s.samples.tolist() for s in ours) == sorted(plan.row(k).samples.tolist() for k in rows)
        positions = np.concatenate([s.positions for s in ours])
        assert np.array_equal(positions, np.arange(rows.start * plan.spec.row_size, rows.stop * plan.spec.row_size))
        assert sum(int(s.filler.sum()) for s in ours) == plan.rows_per_epoch * plan.spec.row_size - plan.spec.samples


@pytest.mark.parametrize("count", [1, 2, 3])
def test_chunks_contain_the_rows_of_their_stream(plan: Plan, count: int) -> None:
    dealt = Streams(plan, count)
    for first, last in ((0, 3 * plan.rows_per_epoch), (5, plan.rows_per_epoch + 2), (4, 5)):
        for stream in range(count):
            found = list(itertools.chain(*dealt.chunks(stream, first, last)))
            assert found == [k for k in range(first, last) if k % count == stream]


def test_a_chunk_reads_one_window() -> None:
    plan = Plan(PlanSpec(samples=640, seed=3, row_size=8, block=4, window=8))  # 4 rows a window
    windows = [set(np.concatenate([plan.row(k).samples for k in range(w * 4, w * 4 + 4)]).tolist()) for w in range(20)]
    for stream, count in ((0, 2), (1, 2), (2, 3)):
        dealt = Streams(plan, count)
        for chunk in dealt.chunks(stream, 0, 72):
            samples = set(np.concatenate([dealt.row(k).samples for k in chunk]).tolist())
            assert any(samples <= window for window in windows)


def test_a_replacement_is_of_the_same_window() -> None:
    plan = Plan(PlanSpec(samples=640, seed=3, row_size=8, block=4, window=8))
    windows = [set(np.concatenate([plan.row(k).samples for k in range(w * 4, w * 4 + 4)]).tolist()) for w in range(20)]
    dealt = Streams(plan, 2)
    for position in range(0, 640, 13):
        own = int(dealt.row(position // 8).samples[position % 8])
        window = next(w for w in windows if own in w)
        drawn = [dealt.replacement(position, attempt) for attempt in (1, 2, 3)]
        assert set(drawn) <= window - {own}
