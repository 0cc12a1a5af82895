"""DeepCluster-v2 and SeLa-v2: the memory, k-means and balanced labels over ranks, images without a label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swav_platform.config import Config
from swav_platform.errors import UserError
from swav_platform.methods.build import build_method
from swav_platform.methods.comm import LocalComm
from swav_platform.methods.deepcluster import DeepCluster, kmeans
from swav_platform.methods.memory import IGNORED
from swav_platform.methods.method import RowOutputs, StepOutputs
from swav_platform.methods.network import MultiCropNetwork
from swav_platform.methods.sela import Sela, balance

S, R, D, HEADS = 4, 3, 5, (4, 6, 4)


def method(name: str = "deepcluster") -> DeepCluster | Sela:
    tree = {
        "data": {"row_size": R},
        "model": {"projection_dim": D},
        "method": {"name": name, "prototypes": HEADS, "freeze_prototypes": 2},
        "train": {"batch": S * R},
    }
    made = build_method(Config.model_validate(tree))
    network = MultiCropNetwork(nn.Linear(2, 2), nn.Linear(2, D), nn.Linear(D, sum(HEADS), bias=False))
    nn.init.normal_(network.prototypes.weight, generator=torch.Generator().manual_seed(0))  # the same in each thread
    made.attach(network)
    return made


def step(number: int, rank: int = 0, size: int = 1) -> StepOutputs:
    """Rows in which a position's sample is the position modulo 40 and features depend on the sample alone."""
    rows = []
    for k in range(number * S + rank, number * S + S, size):
        sample = torch.arange(k * R, k * R + R) % 40
        features = [torch.randn(3, D, generator=torch.Generator().manual_seed(int(s))) for s in sample]
        weight = (sample % 13 != 5).float()
        rows.append(RowOutputs(k, sample, weight, F.normalize(torch.stack(features, 1), dim=-1), torch.zeros(3, R, sum(HEADS))))
    return StepOutputs(number, tuple(rows))


@pytest.mark.parametrize("name", ["deepcluster", "sela"])
def test_the_first_epoch_updates_nothing(name: str) -> None:
    made = method(name)
    everything = {n for n, _ in made.network.named_parameters()}
    made.start_epoch(0, LocalComm())
    assert made.frozen(0) == everything
    outputs = step(0)
    targets = made.targets(outputs, LocalComm())
    assert all((made.loss(row, targets) == 0).all() for row in outputs.rows)
    made.after_step(outputs, LocalComm())
    made.start_epoch(1, LocalComm())
    assert made.frozen(1) == {"prototypes.weight"}
    assert made.frozen(2) == ({"prototypes.weight"} if name == "deepcluster" else set())


@pytest.mark.parametrize("name", ["deepcluster", "sela"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_labels_are_the_same_for_any_number_of_ranks(together: Callable, name: str, ranks: int) -> None:
    def labels(comm) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        made = method(name)
        for number in range(3):  # positions 0 to 35
            made.after_step(step(number, comm.rank, comm.size), comm)
        made.start_epoch(1, comm)
        assert not made.memory.rows
        return made.memory.labels, made.network.prototypes.weight.clone()

    (want, centroids), *_ = together(1, labels)
    for found, weight in together(ranks, labels):
        assert torch.equal(found, want)
        assert torch.equal(weight, centroids)
    assert want.shape == (3, 36)
    unreadable = torch.arange(36) % 13 == 5
    assert (want[:, unreadable] == IGNORED).all()
    assert (want[:, ~unreadable] >= 0).all()


def test_an_image_is_compared_with_its_own_label() -> None:
    made, comm = method(), LocalComm()
    for number in range(3):
        made.after_step(step(number), comm)
    made.start_epoch(1, comm)
    outputs = step(3)  # positions 36 to 47 hold samples 36 to 39, not seen before, and 0 to 7
    targets = made.targets(outputs, comm)
    labels = torch.cat([targets[row.row].labels for row in outputs.rows], dim=1)
    assert (labels[:, :4] == IGNORED).all()
    assert torch.equal(labels[:, 4:], made.memory.labels[:, :8])
    assert targets[12].scale == pytest.approx(12 / 7)  # sample 5 is unreadable
    on_label = F.one_hot(labels[0].clamp_min(0), sum(HEADS)).float().split(R)
    rows = [replace(row, scores=scores.expand(3, -1, -1)) for row, scores in zip(outputs.rows, on_label, strict=True)]
    near = torch.cat([made.loss(row, targets) for row in rows])
    assert (near[:4] == 0).all()
    assert (near[4:9] > 0).all()


def test_a_sample_seen_twice_keeps_its_later_assignment() -> None:
    made, comm = method(), LocalComm()
    for number in range(4):  # 48 positions of 40 samples
        made.after_step(step(number), comm)
    features, weight = made.memory.contents(LocalComm())
    assert features.shape == (2, 48, D)
    made.memory.assign(torch.arange(48).expand(3, -1), comm)
    assert made.memory.labels[0, :9].tolist() == [40, 41, 42, 43, 44, IGNORED, 46, 47, 8]
    assert weight.sum() == 48 - 4


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_memory_is_loaded_by_any_number_of_ranks(together: Callable, ranks: int) -> None:
    one = method()
    for number in (0, 1):
        one.after_step(step(number), LocalComm())
    one.start_epoch(1, LocalComm())
    one.after_step(step(2), LocalComm())
    saved = one.state()

    def resume(comm) -> Tensor:  # type: ignore[no-untyped-def]
        made = method()
        made.load_state(saved, comm)
        made.after_step(step(3, comm.rank, comm.size), comm)
        assert torch.equal(made.memory.labels, saved.shared["labels"])
        made.start_epoch(2, comm)
        return made.memory.labels

    one.after_step(step(3), LocalComm())
    one.start_epoch(2, LocalComm())
    for labels in together(ranks, resume):
        assert torch.equal(labels, one.memory.labels)


def test_an_empty_cluster_keeps_its_centroid() -> None:
    features = F.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.9, 0.2]]), dim=1)
    start = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    centroids, labels = kmeans(features, start, weight=torch.ones(3), iterations=5, comm=LocalComm())
    assert labels.tolist() == [0, 0, 0]
    assert centroids[1].tolist() == [-1.0, 0.0]
    assert torch.allclose(centroids.norm(dim=1), torch.ones(2))
    heavy, _ = kmeans(features, start, weight=torch.tensor([1.0, 0, 0]), iterations=1, comm=LocalComm())
    assert torch.allclose(heavy[0], features[0])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_balanced_labels_have_the_given_masses(together: Callable, ranks: int) -> None:
    log_p = torch.randn(90, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    prior, parts = torch.arange(1, 7, dtype=torch.float64), log_p.split([90 - 20 * (ranks - 1)] + [20] * (ranks - 1))

    def work(comm) -> Tensor:  # type: ignore[no-untyped-def]
        own = parts[comm.rank]
        options = {"iterations": 5000, "tolerance": 1e-9, "comm": comm}
        return balance(lambda: own.split(7), weight=torch.ones(len(own), dtype=torch.float64), prior=prior, **options)

    for log_v in together(ranks, work):
        plan = (log_p + log_v).softmax(1)
        assert torch.allclose(plan.mean(0), prior / prior.sum(), atol=1e-8)


@pytest.mark.parametrize("name", ["deepcluster", "sela"])
def test_an_epoch_without_a_readable_image_is_an_error(name: str) -> None:
    made = method(name)
    bad = [replace(row, weight=torch.zeros(R)) for row in step(0).rows]
    made.after_step(StepOutputs(0, tuple(bad)), LocalComm())
    with pytest.raises(UserError, match="No image"):
        made.start_epoch(1, LocalComm())
