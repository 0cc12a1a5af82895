"""Ten steps of SwAV on a real ResNet-18 in float32, one process against two, three and four over gloo.

LARS at rates at which roundings do not grow: at 0.1 losses of one process and several lie 1e-2 apart after ten steps, since batch
norm over rows of four images makes much of the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from swav_platform.training.checkpoints import latest_valid, load

pytestmark = pytest.mark.stack  # starts processes


@pytest.fixture(scope="module")
def runs(rig: ModuleType, ranks_of: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folder of the runs of so many processes."""
    done: dict[int, Path] = {}

    def run(size: int) -> Path:
        if size not in done:
            done[size] = tmp_path_factory.mktemp(f"resnet18-{size}")
            ranks_of(size, done[size], "resnet18")
        return done[size]

    return run


@pytest.mark.parametrize(("scope", "size"), [("row", 2), ("row", 3), ("row", 4), ("step", 2)])
def test_losses_and_weights_are_those_of_one_process(rig: ModuleType, runs: Callable, scope: str, size: int) -> None:
    one, many = runs(1) / f"resnet18_{scope}", runs(size) / f"resnet18_{scope}"
    assert len(rig.losses(one)) == 10
    assert rig.losses(many) == pytest.approx(rig.losses(one), abs=1e-3)
    begun = rig.initial(rig.resnet18(scope))
    ended, other = (load(latest_valid(folder / "checkpoints")).model for folder in (one, many))
    moved = {name: (ended[name] - begun[name]).norm() for name in begun}
    apart = {name: (ended[name] - other[name]).norm() for name in begun}
    assert sum(apart.values()) < sum(moved.values()) / 100
    assert torch.stack(list(moved.values())).min() > 0
