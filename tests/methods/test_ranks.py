"""A method's mathematics is that of the step's rows: real processes over gloo, eight rows a step, fifty steps, every method."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from swav_platform.methods.comm import LocalComm
from swav_platform.training.checkpoints import load

pytestmark = pytest.mark.stack  # starts processes

SCRIPT = Path(__file__).parent / "ranks.py"
CASES = ["swav", "swav_heads", "deepcluster", "sela", "mean_shift", "simclr"]
METHOD_SUMS = {"swav": 3, "swav_heads": 3, "deepcluster": 1, "sela": 1, "mean_shift": 1, "simclr": 2}


@pytest.fixture(scope="session")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folder of the runs of so many processes; once a session. Three also go on with what one has begun."""
    done: dict[int, Path] = {}

    def run(size: int) -> Path:
        if size not in done:
            folder = done[size] = tmp_path_factory.mktemp(f"methods{size}")
            if size == 3:
                shutil.copytree(run(1), folder / "alone")
            environment = os.environ | {"PYTHONPATH": str(root)}
            rest = [str(size), str(folder / "store"), str(folder)]
            processes = [subprocess.Popen([sys.executable, str(SCRIPT), str(r), *rest], env=environment) for r in range(size)]
            try:
                assert [process.wait(timeout=900) for process in processes] == [0] * size
            finally:
                for process in processes:
                    process.kill()
        return done[size]

    return run


def test_all_cases_are_listed(script: ModuleType) -> None:
    assert list(script.CASES) == CASES


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_those_of_one_process(script: ModuleType, runs: Callable, case: str, size: int) -> None:
    one, many = runs(1) / case, runs(size) / case
    want = script.losses(one)
    assert len(want) == 50
    assert len(set(want)) > 30  # it did learn
    assert script.losses(many) == pytest.approx(want, abs=1e-8)
    last = [load(folder / "checkpoints" / "step-000000050") for folder in (one, many)]
    for part in ("model", "method"):
        a, b = (getattr(snapshot, part) for snapshot in last)
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name].double() - b[name].double()).abs().max() < 1e-7 if a[name].numel() else not b[name].numel(), name


@pytest.mark.parametrize("case", CASES)
def test_what_one_process_began_several_go_on_with(script: ModuleType, runs: Callable, case: str) -> None:
    assert script.losses(runs(3) / "alone" / case) == pytest.approx(script.losses(runs(1) / case), abs=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_and_the_other_way_round(script: ModuleType, runs: Callable, tmp_path: Path, case: str) -> None:
    shutil.copytree(runs(3) / case, tmp_path / case)
    script.go_on(case, tmp_path, LocalComm())
    assert script.losses(tmp_path / case) == pytest.approx(script.losses(runs(1) / case), abs=1e-8)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_collectives_of_a_step(runs: Callable, case: str, size: int) -> None:
    """The method's own and the one that carries gradients, loss, statistics and health; whatever the number of views and heads."""
    calls = json.loads((runs(size) / "calls.json").read_text())[case]
    of_steps = [{kind: now[kind] - before[kind] for kind in now} for before, now in itertools.pairwise(calls)]
    quiet = (1, 2, 3, 4, 11, 12, 13, 14, 20, 33)  # neither an epoch begins there nor was a checkpoint written
    assert all(of_steps[step - 1] == {**dict.fromkeys(of_steps[step - 1], 0), "sum": METHOD_SUMS[case] + 1} for step in quiet)
