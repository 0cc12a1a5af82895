"""The benchmark of the step runs at toy size and prints what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.stack
def test_it_prints_one_line(root: Path) -> None:
    command = [sys.executable, str(root / "benchmarks" / "train_step.py"), "--setting", "toy", "--pairs", "1"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"vs_plain_loop", "channels_last_gain", "collective_share", "codes_and_loss_share", "images_per_second"} <= set(found)
    assert found["vs_plain_loop"] > 0
    assert 0 < found["collective_share"] < 1


def test_the_plain_loop_learns_what_ours_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights, on the same views, the first losses are the same: it is the same algorithm."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import torch
    import train_step
    from plain_loop import PlainLoop

    from swav_platform.methods.comm import LocalComm
    from swav_platform.training.learner import build_learner

    config = train_step.SETTINGS["toy"].config("model.name=resnet_tiny", "model.projection_hidden=16", "model.projection_dim=8")
    cpu = torch.device("cpu")
    views = train_step.inputs(config, cpu, torch.channels_last)
    plain = PlainLoop(config, cpu, torch.channels_last)
    weights = build_learner(config, cpu).network.state_dict()
    plain.network.load_state_dict({name.replace("projection_head", "head"): t.clone() for name, t in weights.items()})
    step = train_step.our_step(config, cpu, LocalComm(), views)
    for group in plain.sgd.param_groups:
        group["lr"] = 0.1
    for _ in range(3):
        assert step().loss == pytest.approx(plain.step(views), abs=2e-4)
