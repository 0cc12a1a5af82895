"""A step's mathematics does not know the number of workers: real processes over gloo, eight rows a step, a network with batch norm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from swav_platform.training.checkpoints.store import latest_valid, load

pytestmark = pytest.mark.stack  # starts processes


@pytest.mark.parametrize("size", [2, 3])
def test_losses_and_weights_are_those_of_one_process(rig: ModuleType, whole64: Path, ranks: Callable, size: int) -> None:
    assert rig.losses(ranks(size) / "whole") == pytest.approx(rig.losses(whole64), abs=1e-8)
    one, many = (load(latest_valid(folder / "checkpoints")) for folder in (whole64, ranks(size) / "whole"))
    for name, value in one.model.items():
        assert (value - many.model[name]).abs().max() < 1e-7, name
    assert one.method["rows"].tolist() == many.method["rows"].tolist() == list(range(64, 80))
    assert (one.method["tensors/features"] - many.method["tensors/features"]).abs().max() < 1e-7


@pytest.mark.parametrize("size", [2, 3])
def test_in_float32(rig: ModuleType, ranks: Callable, tmp_path: Path, size: int) -> None:
    rig.train(rig.short(), tmp_path)
    assert rig.losses(ranks(size) / "short") == pytest.approx(rig.losses(tmp_path), abs=1e-4)


@pytest.mark.parametrize("name", ["over_step", "recompute", "checkpointing_over_step"])
def test_other_ways_to_make_a_step(rig: ModuleType, ranks: Callable, tmp_path: Path, name: str) -> None:
    """Batch norm over the step's rows wherever they are; codes of the whole step, rows one by one."""
    rig.train(rig.way(name), tmp_path, double=True)
    one = load(latest_valid(tmp_path / "checkpoints")).model
    for size in (2, 3):
        assert rig.losses(ranks(size) / name) == pytest.approx(rig.losses(tmp_path), abs=1e-8)
        many = load(latest_valid(ranks(size) / name / "checkpoints")).model
        assert max((one[key] - many[key]).abs().max() for key in one) < 1e-7


@pytest.mark.parametrize("size", [2, 3])
def test_a_run_of_one_process_goes_on_with_several(rig: ModuleType, whole64: Path, ranks: Callable, size: int) -> None:
    found = rig.losses(ranks(size) / "broken")
    assert found[:4] == rig.losses(whole64)[:4]
    assert found[4:] == pytest.approx(rig.losses(whole64)[4:], abs=1e-8)


def test_and_the_other_way_round(rig: ModuleType, whole64: Path, ranks: Callable, tmp_path: Path) -> None:
    """From the checkpoint of three processes, in which each held another part of the queue, to one."""
    run = Path(shutil.copytree(ranks(3) / "whole", tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step-000000010")
    rig.train(rig.config(), run, double=True, resume=True)
    assert rig.losses(run) == pytest.approx(rig.losses(whole64), abs=1e-8)


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_of_a_step(ranks: Callable, size: int) -> None:
    """Three of the method; two buckets of gradients, the last with loss and statistics; one of health if the step is logged."""
    calls = json.loads((ranks(size) / "calls.json").read_text())
    for step in (1, 2, 3, 5, 6, 7, 9):  # 4 and 8 follow a checkpoint
        assert calls[step] == {**calls[step - 1], "sum": calls[step - 1]["sum"] + 5 + (step in (2, 5, 9))}


def test_gathering_what_is_uneven(ranks: Callable) -> None:
    for rank in range(3):
        assert json.loads((ranks(3) / f"gathered-{rank}.json").read_text()) == [[0, 10, 11, 20, 21, 22], [0, 3, 6]]
