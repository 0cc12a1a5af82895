from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from swav_platform.models.normalisation import RowBatchNorm, across, collect, commit, counting, not_recording


def rows(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 5, 4, 4, generator=generator) * (i + 1) + i for i in range(count)]


@pytest.mark.parametrize("shape", [(12, 5), (6, 5, 4, 4)])
def test_one_row_is_torchs_batch_norm(shape: tuple[int, ...]) -> None:
    ours, torchs = RowBatchNorm(5), (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for _ in range(3):
        x = torch.randn(shape) * 3 + 1
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours(a).square().sum().backward()
        torchs(b).square().sum().backward()
        assert torch.allclose(a.grad, b.grad, atol=1e-5)
        commit(ours, collect(ours))
    for name, value in torchs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, atol=1e-6), name
    assert torch.allclose(ours.eval()(x), torchs.eval()(x), atol=1e-6)


def test_running_statistics_move_once_a_step_by_the_mean_of_its_passes() -> None:
    ours, want = RowBatchNorm(5), torch.zeros(5)
    for step in range(2):
        given = rows(3, step)
        for x in given:
            ours(x)
            assert torch.allclose(ours.running_mean, want, atol=1e-5)  # unchanged before the commit
        commit(ours, collect(ours))
        want = 0.9 * want + 0.1 * torch.stack([x.mean((0, 2, 3)) for x in given]).mean(0)
        assert torch.allclose(ours.running_mean, want, atol=1e-5)
    assert ours.num_batches_tracked == 2


def test_statistics_of_ranks_add_up() -> None:
    one, two, all_in_one = (nn.Sequential(RowBatchNorm(5), RowBatchNorm(5)) for _ in range(3))
    given = rows(3)
    one(given[0])
    two(given[1])
    two(given[2])
    for x in given:
        all_in_one(x)
    commit(one, collect(one) + collect(two))
    commit(all_in_one, collect(all_in_one))
    for name, value in all_in_one.state_dict().items():
        assert torch.allclose(one.state_dict()[name], value, atol=1e-5), name


def test_each_layer_moves_by_its_own_width_momentum_and_passes() -> None:
    layers = nn.ModuleList([RowBatchNorm(5), RowBatchNorm(3, momentum=0.5), RowBatchNorm(4)])
    first, second = rows(2)
    for layer, x in ((layers[0], first), (layers[0], second), (layers[1], second[:, :3])):
        layer(x)
    commit(layers, collect(layers))
    want = 0.1 * torch.stack([first.mean((0, 2, 3)), second.mean((0, 2, 3))]).mean(0)
    assert torch.allclose(layers[0].running_mean, want, atol=1e-5)
    assert torch.allclose(layers[1].running_mean, 0.5 * second[:, :3].mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(layers[1].running_var, 0.5 + 0.5 * second[:, :3].var((0, 2, 3)), atol=1e-4)
    assert layers[2].running_mean.eq(0).all(), "no pass"
    assert layers[2].running_var.eq(1).all()
    assert [int(layer.num_batches_tracked) for layer in layers] == [1, 1, 0]


def test_collect_clears_the_sums() -> None:
    layer = RowBatchNorm(5)
    layer(rows(1)[0])
    assert collect(layer)[-1] == 1
    assert collect(layer).eq(0).all()


def test_bfloat16_under_autocast() -> None:
    layer, x = RowBatchNorm(5), rows(1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert collect(layer).dtype == torch.float32
    assert torch.allclose(out.float(), RowBatchNorm(5)(x), atol=0.05)


class Threads:
    """Ranks as threads of one process."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.given = size, threading.Barrier(size), [torch.zeros(0)] * size
        self.rank = threading.local()

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        self.given[self.rank.number] = x
        self.barrier.wait()
        total = torch.stack(self.given).sum(0)
        self.barrier.wait()
        return total

    def run(self, work: Callable[[int], object]) -> list[object]:
        def one(number: int) -> object:
            self.rank.number = number
            return work(number)

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(one, range(self.size)))


@pytest.mark.parametrize("shape", [(5,), (5, 4, 4)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_across_ranks_it_is_one_batch(shape: tuple[int, ...], offset: float) -> None:
    """Uneven shares, and means far from zero, where float32 variances from sums of squares would lose their precision."""
    x = torch.randn(9, *shape, generator=torch.Generator().manual_seed(0)) * 3 + offset
    weights = torch.randn(9, *shape, generator=torch.Generator().manual_seed(1))
    shares, ranks = [2, 6, 1], Threads(3)

    def train(layer: RowBatchNorm, x: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            layer.weight.copy_(torch.arange(5) + 1)
            layer.bias.copy_(torch.arange(5))
        given = x.clone().requires_grad_()
        out = layer(given)
        (out.square() * weights).sum().backward()
        return out.detach(), given.grad, layer.weight.grad, layer.bias.grad, collect(layer)

    def rank(number: int) -> tuple[torch.Tensor, ...]:
        layer = RowBatchNorm(5)
        across(layer, ranks)
        return train(layer, x.split(shares)[number], weights.split(shares)[number])

    parts = list(zip(*ranks.run(rank), strict=True))
    whole = train(RowBatchNorm(5), x, weights)
    close = {"rtol": 1e-4, "atol": 1e-3 if offset else 1e-5}
    for of_ranks, of_one in zip(parts[:2], whole[:2], strict=True):
        assert torch.allclose(torch.cat(of_ranks), of_one, **close)
    for of_ranks, of_one in zip(parts[2:4], whole[2:4], strict=True):
        assert torch.allclose(sum(of_ranks), of_one, rtol=1e-3, atol=1e-2 if offset else 1e-4)
    assert torch.allclose(sum(parts[4]) / 3, whole[4], rtol=1e-5)


def test_recomputed_passes_do_not_count() -> None:
    layer = RowBatchNorm(5)
    with not_recording(layer):
        layer(rows(1)[0])
    assert collect(layer).eq(0).all()
    commit(layer, collect(layer))  # without a pass, nothing changes
    assert layer.running_var.eq(1).all()
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 4, 4)])
def test_grey_images_do_not_change_statistics(shape: tuple[int, ...]) -> None:
    """Two views of six images, of which two are grey."""
    counted = torch.tensor([True, False, True, True, False, True])
    ours, alone = RowBatchNorm(5), RowBatchNorm(5)
    x = torch.randn(shape) * 3 + 1
    mask = counted.repeat(2)
    a, b = x.clone().requires_grad_(), x[mask].clone().requires_grad_()
    with counting(ours, counted):
        out = ours(a)
    expected = alone(b)
    assert torch.allclose(out[mask], expected, atol=1e-5)
    out[mask].pow(3).sum().backward()
    expected.pow(3).sum().backward()
    assert torch.allclose(a.grad[mask], b.grad, atol=1e-3)
    assert torch.allclose(ours.weight.grad, alone.weight.grad, rtol=1e-4)
    found, wanted = collect(ours), collect(alone)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert ours.counted is None


def test_a_pass_without_any_image_does_not_count() -> None:
    ours = RowBatchNorm(5)
    with counting(ours, torch.zeros(6, dtype=torch.bool)):
        out = ours(torch.randn(6, 5, 4, 4))
    assert torch.isfinite(out).all()
    commit(ours, collect(ours))
    assert torch.equal(ours.running_mean, torch.zeros(5))
    assert torch.equal(ours.running_var, torch.ones(5))
    assert ours.num_batches_tracked == 0
