from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config
from swav_platform.errors import UsageError
from swav_platform.methods import health
from swav_platform.methods.build import build_method
from swav_platform.methods.comm import LocalComm
from swav_platform.methods.method import RowOutputs, StepOutputs
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
    """An encoder without interaction between images."""

    feature_dim = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def attached(method: Swav) -> MultiCropNetwork:
    torch.manual_seed(0)
    return method.attach(MultiCropNetwork(Flat(), nn.Linear(3, D), nn.Linear(D, K, bias=False)))


def forward(network: MultiCropNetwork, row: int, pixels: list[Tensor], weight: Tensor) -> RowOutputs:
    return RowOutputs(row, torch.arange(R), weight, *network(pixels, R))


def test_swapped_loss_equals_the_papers_sum() -> None:
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
        outputs = StepOutputs(1, outputs.rows)  # the queue is in use
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


def test_an_unknown_method_is_reported() -> None:
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


def outputs_of(network: MultiCropNetwork, rows: int = 3) -> StepOutputs:
    generator = torch.Generator().manual_seed(4)
    made = []
    for k in range(rows):
        pixels = [torch.rand(2 * R, 3, size, size, generator=generator) for size in (16, 8)]
        made.append(forward(network, k, pixels, torch.ones(R)))
    return StepOutputs(0, tuple(made))


class Counted(LocalComm):
    def __init__(self) -> None:
        self.numbers: list[int] = []

    def sum(self, x: Tensor) -> Tensor:
        self.numbers.append(x.numel())
        return x


@pytest.mark.parametrize("heads", [[K], [K, 4], [K, 4, 9]])
@pytest.mark.parametrize("views", [(0,), (0, 1)])
def test_heads_and_views_share_collectives(heads: list[int], views: tuple[int, ...]) -> None:
    method, comm = Swav(config(prototypes=heads, assign_views=views)), Counted()
    network = method.modules(Flat())
    outputs = outputs_of(network)
    method.targets(outputs, comm)
    assert comm.numbers == [len(views) * sum(heads)] * 3


def test_several_heads_are_several_swavs() -> None:
    """Each head predicts its own codes, and the loss is the mean over heads."""
    heads = (K, 4)
    both = Swav(config(prototypes=heads))
    network = both.modules(Flat())
    assert network.prototypes.weight.shape == (K + 4, D)
    outputs = outputs_of(network)
    targets, want = both.targets(outputs, LocalComm()), torch.zeros(3, R)
    for head, rows in zip(heads, network.prototypes.weight.detach().split(heads), strict=True):
        alone = Swav(config(prototypes=head))
        single = alone.attach(MultiCropNetwork(network.encoder, network.projection_head, nn.Linear(D, head, bias=False)))
        with torch.no_grad():
            single.prototypes.weight.copy_(rows)
        own = outputs_of(single)
        codes = alone.targets(own, LocalComm())
        want += torch.stack([alone.loss(row, codes).detach() for row in own.rows]) / 2
    assert torch.allclose(torch.stack([both.loss(row, targets) for row in outputs.rows]), want, atol=1e-5)
    found = both.health(both.health_sums(outputs, targets), want.mean().item())
    assert found["health/loss_minus_ln_k"] == pytest.approx(want.mean().item() - (math.log(K) + math.log(4)) / 2)
    assert 2 <= found["health/prototypes_used"] <= K + 4


def test_hard_codes() -> None:
    method, soft = Swav(config(prototypes=[K, 4], hard_codes=True)), Swav(config(prototypes=[K, 4]))
    outputs = outputs_of(method.modules(Flat()))
    soft.attach(method.network)
    for row, codes in method.targets(outputs, LocalComm()).items():
        for one, other in zip(codes.split([K, 4], -1), soft.targets(outputs, LocalComm())[row].split([K, 4], -1), strict=True):
            assert torch.equal(one.argmax(-1), other.argmax(-1))
            assert torch.equal(one.sort(-1).values, F.one_hot(torch.full(one.shape[:-1], one.shape[-1] - 1)).to(one.dtype))


def test_a_power_law_prior_gives_unequal_masses() -> None:
    method = Swav(config(prototypes=[K, 4], prior="power_law", prior_exponent=1.0, iterations=200, epsilon=0.5))
    outputs = outputs_of(method.modules(Flat()), rows=20)
    codes = torch.cat(list(method.targets(outputs, LocalComm()).values()), dim=1)
    for part in codes.split([K, 4], -1):
        mass = 1 / torch.arange(1, part.shape[-1] + 1)
        assert torch.allclose(part.mean((0, 1)), mass / mass.sum(), atol=1e-3)


def test_prototypes_that_are_never_learned() -> None:
    method = Swav(config(learn_prototypes=False, freeze_prototypes=0))
    method.modules(Flat())
    assert all(method.frozen(step) == {"prototypes.weight"} for step in (0, 10, 10**6))


def test_drift_is_measured_without_a_collective_of_its_own() -> None:
    method, comm = Swav(config(queue_length=2 * R, queue_drift=1e6)), Counted()
    outputs = outputs_of(method.modules(Flat()), rows=2)
    plain = Swav(config(queue_length=2 * R))
    plain.attach(method.network)
    for one in (method, plain):
        one.queue.fill(0, outputs.rows, (0, 1))
    alone = Swav(config())
    alone.attach(method.network)
    first = method.targets(StepOutputs(1, outputs.rows), comm)  # measures drift, does not use the queue yet
    assert comm.numbers == [2 * K + 2 * 2 * (D + 1), 2 * K, 2 * K]
    assert torch.equal(first[0], alone.targets(outputs, LocalComm())[0])
    assert method.queue.drift == pytest.approx(0, abs=1e-5)  # the step's own features are in the queue
    second = method.targets(StepOutputs(2, outputs.rows), comm)
    assert torch.equal(second[0], plain.targets(StepOutputs(2, outputs.rows), LocalComm())[0])
