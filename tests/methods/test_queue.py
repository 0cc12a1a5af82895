from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from swav_platform.methods.comm import LocalComm
from swav_platform.methods.method import PositionOrderedState, RowOutputs
from swav_platform.methods.queue import Queue

S, R, D = 4, 2, 3  # rows a step, positions a row, dimensions


class Rank(LocalComm):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def outputs(row: int) -> RowOutputs:
    views = torch.full((3, R, D), float(row)) + torch.tensor([0.0, 0.1, 0.2])[:, None, None]
    return RowOutputs(row, torch.arange(R), torch.tensor([1.0, float(row % 2)]), views, torch.zeros(3, R, 5))


def queue(length: int = 16, start: int = 2) -> Queue:
    return Queue(length=length, start=start, batch=S * R, row_size=R, views=2, dim=D)


def fill(queues: list[Queue], steps: range) -> None:
    for step in steps:
        for rank, one in enumerate(queues):
            one.fill(step, [outputs(k) for k in range(step * S, step * S + S) if k % len(queues) == rank], (0, 1))


def test_it_is_used_once_it_is_full() -> None:
    q = queue()
    assert [step for step in range(7) if q.used(step)] == [4, 5, 6]  # filled in steps 2 and 3
    assert not any(queue(0).used(step) for step in range(100))


def test_it_holds_the_newest_features_of_the_assignment_views() -> None:
    q = queue()
    fill([q], range(6))
    features, weight = q.contents()
    assert features.shape == (2, 16, D)
    assert features[0, :, 0].tolist() == [k for k in range(16, 24) for _ in range(R)]
    assert torch.allclose(features[1, :, 0] - features[0, :, 0], torch.tensor(0.1), atol=1e-5)
    assert weight.tolist() == [w for k in range(16, 24) for w in (1.0, float(k % 2))]


def test_nothing_is_kept_before_its_start_and_length_is_whole_batches() -> None:
    q = queue(length=15)
    fill([q], range(2))
    assert not q.rows
    fill([q], range(2, 9))
    assert sorted(q.rows) == [32, 33, 34, 35]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("steps", [3, 4, 9])
def test_the_union_is_the_same_for_any_number_of_ranks(ranks: int, steps: int) -> None:
    alone, spread = queue(), [queue() for _ in range(ranks)]
    fill([alone], range(steps))
    fill(spread, range(steps))
    assert sorted(k for q in spread for k in q.rows) == sorted(alone.rows)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_state_is_loaded_by_any_number_of_ranks(ranks: int) -> None:
    q = queue()
    fill([q], range(6))
    loaded = [queue() for _ in range(ranks)]
    for rank, one in enumerate(loaded):
        one.load(q.state(), Rank(rank, ranks), torch.device("cpu"))
    assert sorted(k for one in loaded for k in one.rows) == sorted(q.rows)
    for one in loaded:
        for k, (features, weight) in one.rows.items():
            assert torch.equal(features, q.rows[k][0])
            assert torch.equal(weight, q.rows[k][1])


def test_an_empty_state() -> None:
    state = queue().state()
    assert isinstance(state, PositionOrderedState)
    assert {name: t.shape for name, t in state.tensors.items()} == {"features": (0, 2, R, D), "weight": (0, R)}
    again = queue()
    again.load(state, LocalComm(), torch.device("cpu"))
    assert not again.rows


def stationary(step: int, turned: bool = False) -> list[RowOutputs]:
    """Rows of features around one direction; `turned` chooses another one."""
    rows = []
    for k in range(step * S, step * S + S):
        noise = torch.randn(3, R, D, generator=torch.Generator().manual_seed(k))
        around = torch.tensor([0.0, 2.0, 0.0] if turned else [2.0, 0.0, 0.0])
        rows.append(RowOutputs(k, torch.arange(R), torch.ones(R), F.normalize(noise + around, dim=-1), torch.zeros(3, R, 5)))
    return rows


def measured(q: Queue, rows: list[RowOutputs]) -> float:
    q.note_drift(q.drift_sums(torch.cat([r.embeddings[[0, 1]] for r in rows], dim=1), torch.cat([r.weight for r in rows])))
    return q.drift


def gated() -> Queue:
    q = Queue(length=S * R * 10, start=0, batch=S * R, row_size=R, views=2, dim=D, most_drift=3.0)
    for step in range(10):
        q.fill(step, stationary(step), (0, 1))
    return q


def test_drift_is_one_for_equal_distributions_and_large_when_features_turn() -> None:
    q = gated()
    same = [measured(q, stationary(step)) for step in range(100, 140)]
    assert sum(same) / len(same) == pytest.approx(1, abs=0.25)
    assert min(measured(q, stationary(step, turned=True)) for step in range(100, 140)) > 3


def test_the_queue_is_used_only_while_drift_is_small() -> None:
    q = gated()
    assert q.full(10)
    assert not q.used(10)  # drift is not measured yet
    measured(q, stationary(100))
    assert q.used(11)
    again = gated()
    again.load(q.state(), LocalComm(), torch.device("cpu"))
    assert again.used(11)
    measured(q, stationary(101, turned=True))
    assert not q.used(12)
