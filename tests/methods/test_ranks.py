"""Results do not depend on the number of ranks: real processes over gloo, eight rows per step, fifty steps, every method.

Batch statistics are those of a row and of the step.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from swav_platform.methods.comm import LocalComm
from swav_platform.training.checkpoints.store import load

pytestmark = pytest.mark.stack  # starts processes

CASES = ["swav", "swav_heads", "deepcluster", "sela", "mean_shift", "simclr"]
EVERY = [*CASES, *(f"{case}_over_step" for case in CASES)]
METHOD_SUMS = {"swav": 3, "swav_heads": 3, "deepcluster": 1, "sela": 1, "mean_shift": 1, "simclr": 2}
NORMALISATION = {"mean_shift": 10}  # default: one layer at two resolutions and one in the head, forward and backward
COLLECTING, FIRST_EPOCH = {"deepcluster", "sela"}, 10  # steps


def test_all_cases_are_listed(script: ModuleType) -> None:
    assert list(script.CASES) == CASES


@pytest.mark.parametrize(("size", "case"), [*((size, case) for size in (2, 3) for case in EVERY), *((4, case) for case in CASES)])
def test_losses_and_weights_are_those_of_one_process(script: ModuleType, runs: Callable, case: str, size: int) -> None:
    one, many = runs(1) / case, runs(size) / case
    want = script.losses(one)
    assert len(want) == 50
    assert len(set(want)) > 30  # losses change
    assert script.losses(many) == pytest.approx(want, abs=1e-8)
    last = [load(folder / "checkpoints" / "step-000000050") for folder in (one, many)]
    for part in ("model", "method"):
        a, b = (getattr(snapshot, part) for snapshot in last)
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name].double() - b[name].double()).abs().max() < 1e-7 if a[name].numel() else not b[name].numel(), name


@pytest.mark.parametrize("case", EVERY)
def test_isolated_ranks_have_other_losses(script: ModuleType, runs: Callable, case: str) -> None:
    """The comparison above can fail: with codes or batch statistics of the rank's own rows, losses (of all rows) differ."""
    want = script.losses(runs(1) / case)[: script.ISOLATED_STEPS]
    found = script.losses(runs(2) / "isolated" / case)
    assert len(found) == script.ISOLATED_STEPS
    assert max(abs(a - b) for a, b in zip(found, want, strict=True)) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_several_processes_resume_a_run_of_one(script: ModuleType, runs: Callable, case: str) -> None:
    assert script.losses(runs(3) / "alone" / case) == pytest.approx(script.losses(runs(1) / case), abs=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_one_process_resumes_a_run_of_several(script: ModuleType, runs: Callable, tmp_path: Path, case: str) -> None:
    shutil.copytree(runs(3) / case, tmp_path / case)
    script.resume(case, tmp_path, LocalComm())
    assert script.losses(tmp_path / case) == pytest.approx(script.losses(runs(1) / case), abs=1e-8)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", EVERY)
def test_collectives_of_a_step(runs: Callable, case: str, size: int) -> None:
    """The method's own, and one for gradients, loss and statistics, for any number of views and heads; one of health if it is logged.

    Batch statistics of a step add two for each layer and resolution, or one in an epoch that only goes forward.
    """
    method, _, over_step = case.partition("_over")

    def expected(step: int) -> int:
        forward_only = method in COLLECTING and step < FIRST_EPOCH
        logged = (step + 1) % 10 == 0
        return METHOD_SUMS[method] + 1 + logged + (NORMALISATION.get(method, 6) // (2 if forward_only else 1) if over_step else 0)

    calls = json.loads((runs(size) / "calls.json").read_text())[case]
    of_steps = [{kind: now[kind] - before.get(kind, 0) for kind in now} for before, now in itertools.pairwise(calls)]
    ordinary = (1, 2, 3, 4, 9, 11, 12, 13, 14, 20, 33)  # no epoch begins and no checkpoint is written there
    assert all(of_steps[step - 1] == {**dict.fromkeys(of_steps[step - 1], 0), "sum": expected(step)} for step in ordinary)
