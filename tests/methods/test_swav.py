from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from swav_platform.config import Config
from swav_platform.errors import UsageError
from swav_platform.methods import health
from swav_platform.methods.comm import LocalComm
from swav_platform.methods.method import RowOutputs, StepOutputs, build_method
from swav_platform.methods.network import MultiCropNetwork
from swav_platform.methods.swav import Swav, swapped_loss

R, D, K = 4, 8, 6


def config(**method: object) -> Config:
    return Config.model_validate(
        {
            "data": {"row_size": R},
            "views": {"large": {"size": 16, "count": 2, "scale": (0.3, 1)}, "small": {"size": 8, "count": 2, "scale": (0.1, 1)}},
            "model": {"name": "resnet_tiny", "stem": "small", "projection_hidden": 16, "projection_dim": D},
            "method": {"prototypes": K, "freeze_prototypes": 3, **method},
            "train": {"batch": 2 * R},
        }
    )


class Flat(nn.Module):
    """An encoder in which images do not touch each other."""

    feature_dim = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def attached(method: Swav) -> MultiCropNetwork:
    torch.manual_seed(0)
    return method.attach(MultiCropNetwork(Flat(), nn.Linear(3, D), nn.Linear(D, K, bias=False)))


def forward(network: MultiCropNetwork, row: int, pixels: list[Tensor], weight: Tensor) -> RowOutputs:
    return RowOutputs(row, torch.arange(R), weight, *network(pixels, R))


def test_swapped_loss_as_the_paper_sums_it() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(5, R, K, generator=generator) * 2 - 1
    codes = torch.softmax(torch.randn(2, R, K, generator=generator), -1)
    want = torch.zeros(R)
    for n in range(R):
        for a, i in enumerate((0, 2)):
            for v in (v for v in range(5) if v != i):
                p = torch.softmax(scores[v, n] / 0.1, 0)
                want[n] -= (codes[a, n] * p.log()).sum() / 4 / 2
    assert torch.allclose(swapped_loss(scores, codes, (0, 2), 0.1), want, atol=1e-5)


def test_the_network_keeps_views_and_images_apart() -> None:
    network = attached(Swav(config()))
    large, small = torch.rand(2, R, 3, 16, 16), torch.rand(2, R, 3, 8, 8)
    embeddings, scores = network([large.flatten(0, 1), small.flatten(0, 1)], R)
    assert embeddings.shape == (4, R, D)
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(4, R))
    alone, _ = network([small[1, 2][None]], 1)
    assert torch.allclose(embeddings[3, 2], alone[0, 0], atol=1e-6)
    assert torch.allclose(scores, embeddings @ network.prototypes.weight.T)


def test_scores_stay_float32_in_a_bfloat16_network() -> None:
    network = attached(Swav(config()))
    with torch.autocast("cpu", torch.bfloat16):
        embeddings, scores = network([torch.rand(2 * R, 3, 8, 8)], R)
    assert embeddings.dtype == scores.dtype == torch.float32
    assert torch.allclose(scores, embeddings @ network.prototypes.weight.T, atol=1e-6)


def test_zero_weight_images_do_not_contribute() -> None:
    method = Swav(config(queue_length=2 * R))
    network, weight = attached(method), torch.tensor([1.0, 0.0, 1.0, 1.0])
    pixels = [torch.rand(2, R, 3, 16, 16), torch.rand(2, R, 3, 8, 8)]

    def loss_and_gradients() -> list[Tensor]:
        method.queue.rows.clear()
        network.zero_grad()
        rows = [forward(network, k, [(p + k * 0.1).flatten(0, 1) for p in pixels], weight) for k in (0, 1)]
        outputs = StepOutputs(0, tuple(rows))
        method.queue.fill(0, rows, (0, 1))
        outputs = StepOutputs(1, outputs.rows)  # with the queue in use
        targets = method.targets(outputs, LocalComm())
        loss = sum((row.weight * method.loss(row, targets)).sum() for row in rows)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in network.parameters())]

    before = loss_and_gradients()
    for p in pixels:
        p[:, 1] += torch.tensor([3.0, -2.0, 1.0])[:, None, None]
    for a, b in zip(before, loss_and_gradients(), strict=True):
        assert torch.equal(a, b)
    for p in pixels:
        p[:, 2] += torch.tensor([3.0, -2.0, 1.0])[:, None, None]
    assert not torch.equal(before[0], loss_and_gradients()[0])


def test_prototypes_are_frozen_first_and_of_unit_length_always() -> None:
    method = Swav(config())
    network = method.modules(Flat())
    assert [step for step in range(6) if method.frozen(step)] == [0, 1, 2]
    assert method.frozen(0) <= {name for name, _ in network.named_parameters()}
    assert torch.allclose(network.prototypes.weight.norm(dim=1), torch.ones(K))
    with torch.no_grad():
        network.prototypes.weight *= 3
    method.after_step(StepOutputs(0, ()), LocalComm())
    assert torch.allclose(network.prototypes.weight.norm(dim=1), torch.ones(K))


def test_heads_come_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, two = (Swav(config()).modules(Flat()) for _ in range(2))
    other = Swav(config().model_copy(update={"seed": 7})).modules(Flat())
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.prototypes.weight, other.prototypes.weight)


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(UsageError, match=r"swev.*swav"):
        build_method(config(name="swev"))


def one_row(embeddings: Tensor, scores: Tensor) -> StepOutputs:
    row = RowOutputs(0, torch.arange(len(scores)), torch.ones(len(scores)), embeddings[None], scores[None])
    return StepOutputs(0, (row,))


def test_health() -> None:
    generator = torch.Generator().manual_seed(2)
    spread_out = nn.functional.normalize(torch.randn(4000, D, generator=generator), dim=1)
    scores, codes = torch.eye(K).repeat(1000, 1)[:4000, :], torch.full((4000, K), 1 / K)
    found = health.of_prototypes(health.prototype_sums(one_row(spread_out, scores), (0,), [K], codes), 1.0, [K])
    assert found["health/loss_minus_ln_k"] == pytest.approx(1 - math.log(K))
    assert found["health/code_entropy"] == pytest.approx(math.log(K), abs=1e-4)
    assert found["health/prototypes_used"] == K
    assert found["health/feature_std"] == pytest.approx(1, abs=0.02)
    assert found["health/effective_rank"] == pytest.approx(D, abs=0.1)
    same = spread_out[:1].expand(4000, D)
    alike = one_row(same, scores[:1].expand(4000, K))
    found = health.of_prototypes(health.prototype_sums(alike, (0,), [K], torch.eye(K)[:1].expand(4000, K)), 1.0, [K])
    assert found["health/feature_std"] < 0.01
    assert found["health/code_entropy"] == pytest.approx(0, abs=1e-6)
    assert found["health/prototypes_used"] == 1
