"""A method's mathematics is that of the step's rows: real processes over gloo, eight rows a step, fifty steps, every method, with
batch statistics of a row and of the step."""

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
NORMALISATION = {"mean_shift": 10}  # else one layer at two resolutions, one of the head; there and back
COLLECTING, FIRST_EPOCH = {"deepcluster", "sela"}, 10  # steps


def test_all_cases_are_listed(script: ModuleType) -> None:
    assert list(script.CASES) == CASES


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("case", EVERY)
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


@pytest.mark.parametrize("case", EVERY)
def test_ranks_that_hear_nobody_learn_something_else(script: ModuleType, runs: Callable, case: str) -> None:
    """The comparison above can fail: by codes of the rank's own rows, by batch statistics of them. Each loss is still that of all."""
    want = script.losses(runs(1) / case)[: script.DEAF_STEPS]
    found = script.losses(runs(2) / "deaf" / case)
    assert len(found) == script.DEAF_STEPS
    assert max(abs(a - b) for a, b in zip(found, want, strict=True)) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_what_one_process_began_several_go_on_with(script: ModuleType, runs: Callable, case: str) -> None:
    assert script.losses(runs(3) / "alone" / case) == pytest.approx(script.losses(runs(1) / case), abs=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_and_the_other_way_round(script: ModuleType, runs: Callable, tmp_path: Path, case: str) -> None:
    shutil.copytree(runs(3) / case, tmp_path / case)
    script.go_on(case, tmp_path, LocalComm())
    assert script.losses(tmp_path / case) == pytest.approx(script.losses(runs(1) / case), abs=1e-8)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", EVERY)
def test_collectives_of_a_step(runs: Callable, case: str, size: int) -> None:
    """The method's own and the one that carries gradients, loss, statistics and health; whatever the number of views and heads.
    Over a step, two for each batch norm and resolution as well; one in an epoch that only collects features and goes forward only."""
    method, _, over_step = case.partition("_over")

    def expected(step: int) -> int:
        forward_only = method in COLLECTING and step < FIRST_EPOCH
        return METHOD_SUMS[method] + 1 + (NORMALISATION.get(method, 6) // (2 if forward_only else 1) if over_step else 0)

    calls = json.loads((runs(size) / "calls.json").read_text())[case]
    of_steps = [{kind: now[kind] - before[kind] for kind in now} for before, now in itertools.pairwise(calls)]
    quiet = (1, 2, 3, 4, 9, 11, 12, 13, 14, 20, 33)  # neither an epoch begins there nor was a checkpoint written
    assert all(of_steps[step - 1] == {**dict.fromkeys(of_steps[step - 1], 0), "sum": expected(step)} for step in quiet)
