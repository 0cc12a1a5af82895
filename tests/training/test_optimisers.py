from __future__ import annotations

import pytest
import torch
from torch import nn

from swav_platform.config import Optimiser
from swav_platform.training.optimisation.optimisers import build_optimiser, load_optimiser_tensors, optimiser_tensors
from swav_platform.training.optimisation.schedules import learning_rate


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=torch.channels_last)


def step(net: nn.Module, optimiser: object, number: int) -> None:
    optimiser.zero_grad()
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(number))
    net(x).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_state_goes_there_and_back_to_the_last_bit(name: str) -> None:
    options = Optimiser(name=name, lr=0.1, weight_decay=0.01)
    one = network()
    first = build_optimiser(one.parameters(), options)
    for number in range(3):
        step(one, first, number)
    two = network()
    two.load_state_dict(one.state_dict())
    second = build_optimiser(two.parameters(), options)
    saved = {k: v.clone().contiguous() for k, v in optimiser_tensors(first, one).items()}
    assert {k.split("/")[0] for k in saved} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    load_optimiser_tensors(second, two, saved)
    for number in range(3, 6):
        step(one, first, number)
        step(two, second, number)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_lars_leaves_zero_norms_as_they_are() -> None:
    zero, usual = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.tensor([3.0, 4.0]))
    lars = build_optimiser([zero, usual], Optimiser(name="lars", weight_decay=0.1))
    lars.param_groups[0]["lr"] = 1.0
    zero.grad, usual.grad = torch.ones(3), torch.tensor([0.0, 2.0])
    lars.step()
    assert zero.tolist() == [-1.0, -1.0, -1.0]
    rate = 0.001 * 5 / (2 + 0.1 * 5 + 1e-8)
    assert usual.tolist() == pytest.approx([3 - rate * 0.3, 4 - rate * 2.4])


@pytest.mark.parametrize(("lr", "rate"), [(1.0, 0.01), (0.001, 0.001)])
def test_lars_moves_no_layer_faster_than_lr_if_told_so(lr: float, rate: float) -> None:
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    lars = build_optimiser([p], Optimiser(name="lars", weight_decay=0, clip_rate=True))
    lars.param_groups[0]["lr"] = lr
    p.grad = torch.tensor([0.3, 0.4])
    lars.step()
    assert p.tolist() == pytest.approx([3 - rate * 0.3, 4 - rate * 0.4], rel=1e-6)


def test_learning_rate() -> None:
    options = Optimiser(lr=2.0, start_lr=0.5, final_lr=0.1, warmup_steps=4)
    rates = [learning_rate(s, 12, options) for s in range(12)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.05)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert [learning_rate(s, 2, options) for s in range(2)] == [0.5, 1.0]  # a run that ends while it warms up


def test_lars_on_a_gpu_does_not_wait_and_moves_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path without a host synchronisation, here on the CPU; one weight has no length, one no gradient."""
    from swav_platform.training.optimisation import optimisers

    parameters = [torch.randn(4, 3), torch.zeros(5), torch.randn(2)]
    gradients = [torch.randn(4, 3), torch.randn(5), torch.zeros(2)]
    lars = build_optimiser([nn.Parameter(p) for p in parameters], Optimiser(name="lars", lr=1.0, weight_decay=0.1))
    want, got = ([g.clone() for g in gradients] for _ in range(2))
    lars._adapt(parameters, want, 1.0)
    p_norm, g_norm = (torch.stack([t.norm() for t in of]) for of in (parameters, gradients))
    adapted = (p_norm > 0) & (g_norm > 0)
    rate = torch.where(adapted, 0.001 * p_norm / (g_norm + p_norm * 0.1 + 1e-8), 1.0)
    optimisers._scale_on_device(parameters, got, rate, adapted * 0.1)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b)
