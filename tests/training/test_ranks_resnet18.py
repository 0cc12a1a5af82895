"""Ten steps of SwAV on a real ResNet-18 in float32, one process against two and four over gloo.

LARS at rates at which roundings do not grow: at 0.1 losses of one process and several lie 1e-2 apart after ten steps, since batch
norm over rows of four images makes much of the last bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from swav_platform.training.checkpoints.store import latest_valid, load

pytestmark = pytest.mark.stack  # starts processes


@pytest.fixture(scope="module")
def one(rig: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the run of one process."""

    @functools.cache
    def run(scope: str) -> Path:
        folder = tmp_path_factory.mktemp(scope)
        rig.train(rig.resnet18(scope), folder)
        return folder

    return run


@pytest.fixture(scope="module")
def many(ranks_of: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folder of the runs of so many processes."""

    @functools.cache
    def run(size: int) -> Path:
        folder = tmp_path_factory.mktemp(f"resnet18-{size}")
        ranks_of("resnet18", size, folder)
        return folder

    return run


@pytest.mark.parametrize(("scope", "size"), [("row", 2), ("row", 4), ("step", 2)])
def test_losses_and_weights_are_those_of_one_process(
    rig: ModuleType, one: Callable, many: Callable, scope: str, size: int
) -> None:
    want, got = one(scope), many(size) / f"resnet18_{scope}"
    assert len(rig.losses(want)) == 10
    assert rig.losses(got) == pytest.approx(rig.losses(want), abs=1e-3)
    begun = rig.initial(rig.resnet18(scope))
    ended, other = (load(latest_valid(folder / "checkpoints")).model for folder in (want, got))
    for name, start in begun.items():
        moved, apart = (ended[name] - start).norm(), (ended[name] - other[name]).norm()
        assert apart < moved / 20, name


def test_losses_are_those_of_weights_that_learn(rig: ModuleType, one: Callable, tmp_path: Path) -> None:
    """The comparison above would see other gradients: without any, losses are another hundred tolerances away."""
    rig.train(rig.resnet18("row", lr=1e-9), tmp_path)
    assert max(abs(a - b) for a, b in zip(rig.losses(tmp_path), rig.losses(one("row")), strict=True)) > 0.1
