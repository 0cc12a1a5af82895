"""Ten steps of SwAV on a real ResNet-18 in float32: one process and several, over gloo.

SGD at a learning rate of 1e-4. At 0.01, with rows of four images and a ReLU after each batch norm, roundings grow a hundredfold a
step: of two processes and one, losses lie 1e-5 apart after one step and 0.1 after three.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

pytestmark = pytest.mark.stack  # starts processes


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("case", ["resnet18", "resnet18_over_step"])
def test_losses_are_those_of_one_process(script: ModuleType, runs: Callable, case: str, size: int) -> None:
    one, many = script.losses(runs(1, "real") / case), script.losses(runs(size, "real") / case)
    assert len(many) == 10
    assert many == pytest.approx(one, abs=1e-3)
    assert len(set(one)) == 10


@pytest.mark.parametrize("case", ["resnet18", "resnet18_over_step"])
def test_ranks_that_hear_nobody_learn_something_else(script: ModuleType, runs: Callable, case: str) -> None:
    one = script.losses(runs(1, "real") / case)
    apart = script.losses(runs(2, "real") / "deaf" / case)
    assert max(abs(a - b) for a, b in zip(apart, one[:3], strict=True)) > 1e-3
