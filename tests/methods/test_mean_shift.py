from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config
from swav_platform.methods.comm import LocalComm
from swav_platform.methods.mean_shift import MeanShift
from swav_platform.methods.method import RowOutputs, StepOutputs
from swav_platform.methods.network import MomentumNetwork

S, R, D = 4, 3, 5


def method(**options: object) -> MeanShift:
    tree = {
        "data": {"row_size": R},
        "model": {"projection_dim": D},
        "method": {"name": "mean_shift", "bank_length": 30, "neighbours": 3, **options},
        "train": {"batch": S * R},
    }
    made = MeanShift(Config.model_validate(tree))
    torch.manual_seed(0)
    made.attach(MomentumNetwork(Flat(), nn.Linear(3, D), nn.Linear(D, D), made.options.assign_views))
    return made


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def step(number: int, rank: int = 0, size: int = 1, views: int = 2) -> StepOutputs:
    rows = []
    for k in range(number * S + rank, number * S + S, size):
        generator = torch.Generator().manual_seed(k)
        queries, targets = (F.normalize(torch.randn(n, R, D, generator=generator), dim=-1) for n in (4, views))
        weight = torch.tensor([1.0, 1.0, float(k % 3 > 0)])
        rows.append(RowOutputs(k, torch.arange(R), weight, queries, torch.zeros(4, R, 0), targets))
    return StepOutputs(number, tuple(rows))


def brute(until: int, row: RowOutputs, k: int, newest: int) -> Tensor:
    """[A, R, V]: mean squared distance from each query to the k nearest readable targets of the newest rows, by brute force."""
    seen = [r for t in range(until + 1) for r in step(t).rows][-newest:]
    out = torch.zeros(2, R, 4)
    for a in range(2):
        bank = torch.cat([r.momentum[a][r.weight > 0] for r in seen])
        for i in range(R):
            near = (bank - row.momentum[a, i]).norm(dim=1).argsort()[:k]
            for v in range(4):
                out[a, i, v] = (bank[near] - row.embeddings[v, i]).square().sum(1).mean()
    return out


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_queries_move_to_the_neighbours_of_their_target(together: Callable, ranks: int) -> None:
    """With a bank of two steps, every row has the same neighbours on any number of ranks."""

    def work(comm) -> dict[int, Tensor]:  # type: ignore[no-untyped-def]
        made, losses = method(), {}
        for number in range(4):
            outputs = step(number, comm.rank, comm.size)
            targets = made.targets(outputs, comm)
            losses |= {row.row: made.loss(row, targets) for row in outputs.rows}
        assert sum(comm.calls.values()) == 4
        return losses

    losses = {k: loss for one in together(ranks, work) for k, loss in one.items()}
    for number in (0, 1, 3):
        for row in step(number).rows:
            distance = brute(number, row, 3, newest=2 * S)
            want = torch.stack([distance[0, :, 1:].mean(-1), distance[1][:, [0, 2, 3]].mean(-1)]).mean(0)
            assert torch.allclose(losses[row.row][row.weight > 0], want[row.weight > 0], atol=1e-5)


def test_one_neighbour_is_the_image_itself() -> None:
    """BYOL's objective (Grill et al. 2020, eq. 2), symmetric."""
    made, outputs = method(neighbours=1), step(0)
    targets = made.targets(outputs, LocalComm())
    for row in outputs.rows:
        each = (row.embeddings[None] - row.momentum[:, None]).square().sum(-1)  # [A, V, R]
        want = (each.sum(1) - torch.stack([each[0, 0], each[1, 1]])).mean(0) / 3
        assert torch.allclose(made.loss(row, targets)[:2], want[:2], atol=1e-5)


def test_fewer_than_k_are_in_the_bank() -> None:
    made, outputs = method(neighbours=12), step(0)  # of 12 images two are unreadable
    targets = made.targets(outputs, LocalComm())
    assert targets[0].counted.sum(-1).unique().tolist() == [10.0]
    assert all(made.loss(row, targets).isfinite().all() for row in outputs.rows)


def test_weak_and_strong_views() -> None:
    """With one target, it goes through the momentum network only, and all other views of any size are queries."""
    network = method(assign_views=(0,)).network
    pixels = [torch.rand(1, R, 3, 8, 8), torch.rand(1, R, 3, 8, 8), torch.rand(2, R, 3, 4, 4)]
    queries, scores, targets = network([p.flatten(0, 1) for p in pixels], R)
    assert (queries.shape, scores.shape, targets.shape) == ((3, R, D), (3, R, 0), (1, R, D))
    alone = network.momentum(pixels[0][0])
    assert torch.allclose(targets[0], F.normalize(alone, dim=-1), atol=1e-6)
    strong = network.predictor(network.projection_head(network.encoder(pixels[1][0])))
    assert torch.allclose(queries[0], F.normalize(strong, dim=-1), atol=1e-6)
    made = method(assign_views=(0,), neighbours=1)
    row = RowOutputs(0, torch.arange(R), torch.ones(R), queries, scores, targets)
    rows = (row, *(RowOutputs(k, row.sample, row.weight, queries, scores, targets + 1) for k in (1, 2, 3)))
    loss = made.loss(row, made.targets(StepOutputs(0, rows), LocalComm()))
    assert torch.allclose(loss, (queries - targets).square().sum(-1).mean(0), atol=1e-5)


def test_the_momentum_network_follows_and_is_not_trained() -> None:
    made = method(momentum=0.9)
    network = made.network
    assert not any(p.requires_grad for p in network.momentum.parameters())
    with torch.no_grad():
        network.projection_head.weight += 1
    before = network.momentum[1].weight.clone()
    made.after_step(step(0), LocalComm())
    assert torch.allclose(network.momentum[1].weight, before + 0.1)
    queries, _, targets = network([torch.rand(2 * R, 3, 8, 8)], R)
    assert queries.requires_grad
    assert not targets.requires_grad


def test_the_bank_is_loaded() -> None:
    one, two = method(), method()
    for number in range(3):
        one.targets(step(number), LocalComm())
    two.load_state(one.state(), LocalComm())
    a, b = (made.targets(step(3), LocalComm()) for made in (one, two))
    assert all(torch.equal(a[k].embeddings, b[k].embeddings) for k in a)
