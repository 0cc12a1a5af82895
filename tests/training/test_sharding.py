"""Weights split over ranks: the same losses, and checkpoints that do not tell. Two processes over gloo."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from swav_platform.config import ConfigError
from swav_platform.errors import UserError
from swav_platform.models.encoders import build_encoder
from swav_platform.training.checkpoints.store import load
from swav_platform.training.footprint import footprint
from swav_platform.training.learner import build_learner
from swav_platform.training.optimisation import sharding

NAMES = ["sgd", "lars", "over_step", "mean_shift", "forward_only"]


@pytest.fixture(scope="module")
def split(rig: ModuleType, ranks_of: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs of two processes with split weights."""
    folder = tmp_path_factory.mktemp("split")
    with pytest.raises(ConnectionError):  # after the checkpoint of four steps
        rig.train_split("sgd", folder / "split_later", shard="none", stop=4 * 8 + 3)
    ranks_of("split", 2, folder)
    return folder


def test_all_cases_are_listed(rig: ModuleType) -> None:
    assert list(rig.SPLIT) == NAMES


@pytest.mark.stack
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_checkpoints_are_those_of_whole_weights(rig: ModuleType, split: Path, tmp_path: Path, name: str) -> None:
    rig.train_split(name, tmp_path, shard="none")
    run = split / f"split_{name}"
    assert len(rig.losses(run)) == 5
    assert rig.losses(run) == pytest.approx(rig.losses(tmp_path), abs=1e-5)
    one, two = (load(folder / "checkpoints" / "step-000000005") for folder in (tmp_path, run))
    for part in ("model", "optimizer", "method"):
        a, b = getattr(one, part), getattr(two, part)
        assert {key: t.shape for key, t in a.items()} == {key: t.shape for key, t in b.items()}
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert torch.allclose(a[key].double(), b[key].double(), atol=1e-4, rtol=1e-4), key


@pytest.mark.stack
def test_a_run_of_split_weights_goes_on_with_whole_ones(rig: ModuleType, split: Path, tmp_path: Path) -> None:
    found = Path(shutil.copytree(split / "split_sgd", tmp_path / "run"))
    shutil.rmtree(found / "checkpoints" / "step-000000005")
    rig.train_split("sgd", found, shard="none", resume=True)
    assert rig.losses(found) == pytest.approx(rig.losses(split / "split_sgd"), abs=1e-5)


@pytest.mark.stack
def test_and_the_other_way_round(rig: ModuleType, split: Path) -> None:
    assert rig.losses(split / "split_later") == pytest.approx(rig.losses(split / "split_sgd"), abs=1e-5)


@pytest.mark.stack
def test_each_rank_holds_a_part(rig: ModuleType, split: Path) -> None:
    """Of all weights but prototypes, which stay whole and float32 on each."""
    held = [torch.load(split / f"held-{rank}.pt") for rank in (0, 1)]
    whole = build_learner(rig.split("sgd", "none"), torch.device("cpu")).network
    for name, p in whole.named_parameters():
        parts = [of_rank[name] for of_rank in held]
        if name == "prototypes.weight":
            assert [tuple(part.shape) for part in parts] == [tuple(p.shape)] * 2
            assert parts[0].dtype == torch.float32
        else:
            assert sum(part.numel() for part in parts) == p.numel()
            assert all(part.numel() <= -(-p.numel() // 2) for part in parts)


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_16gf"])
def test_blocks_are_what_stages_are_made_of(rig: ModuleType, name: str) -> None:
    encoder = build_encoder(rig.config().model.model_copy(update={"name": name}))
    blocks = list(sharding._blocks(encoder))
    assert len(blocks) == {"resnet18": 8, "regnet_y_16gf": 18}[name]
    inside = sum(p.numel() for block in blocks for p in block.parameters())
    assert 0.99 < inside / sum(p.numel() for p in encoder.parameters()) < 1


def test_what_it_does_not_go_with(rig: ModuleType) -> None:
    with pytest.raises(UserError, match="3 workers do not divide the 8 rows"):
        build_learner(rig.split("sgd"), torch.device("cpu"), 3)
    with pytest.raises(ConfigError, match=r"train\.workers=3 does not divide"):
        rig.config(train__shard="fsdp2", train__workers=3)
    for change in ({"train__compile": True}, {"train__precision": "fp16"}):
        with pytest.raises(ConfigError, match=r"neither train\.compile nor train\.precision=fp16"):
            rig.config(train__shard="fsdp2", **change)


def test_memory_and_traffic(rig: ModuleType) -> None:
    """Parts of all weights but prototypes; gathered twice and summed once a pass of a row at a resolution."""
    (whole, _), (split, sent) = (footprint(rig.config(train__workers=2, train__shard=shard)) for shard in ("none", "fsdp2"))
    prototypes = 4 * 12 * 8
    assert split.gradients == pytest.approx((whole.gradients + prototypes) / 2, rel=1e-3)
    assert split.optimiser == split.gradients
    assert whole.weights / 2 < split.weights < 0.51 * whole.weights
    assert sent.gradient_bytes == pytest.approx(4 * 2 * 2 * (whole.gradients - prototypes) + prototypes, rel=1e-3)
