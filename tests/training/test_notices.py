"""Requests to stop: all ranks stop after the same step, with a checkpoint, and a resumed run equals an unbroken one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from swav_platform.training import loop, notices
from swav_platform.training.checkpoints.store import latest_valid, steps_of
from swav_platform.training.notices import Interrupted, Notices


def test_a_request_of_one_rank_reaches_all() -> None:
    ranks = [Notices(), Notices()]
    ranks[1].request("SIGTERM")
    sums = [sum(pair) for pair in zip(*(n.numbers(r) for r, n in enumerate(ranks)), strict=True)]
    assert [n.agreed(sums) for n in ranks] == ["requested of another worker", "SIGTERM"]


def test_all_ranks_ask_at_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "ASK_SECONDS", 0.0)
    ranks = [Notices(ask=lambda: "the node goes away") for _ in range(2)]
    sums = [sum(pair) for pair in zip(*(n.numbers(r) for r, n in enumerate(ranks)), strict=True)]
    assert sums == [0.0, 1.0], "rank 0 decides"
    assert [n.agreed(sums) for n in ranks] == ["the node goes away"] * 2
    monkeypatch.setattr(notices, "ASK_SECONDS", 100.0)
    assert ranks[0].numbers(0) == [0.0, 0.0]


def test_an_interrupted_run_loses_no_step(rig: ModuleType, whole: Path, tmp_path: Path) -> None:
    asked = Notices()

    def stop_after_five(progress: loop.Progress) -> None:
        if progress.step == 4:
            asked.request("a node goes away")

    with pytest.raises(Interrupted, match="a node goes away"):
        rig.train(rig.config(), tmp_path, on_progress=stop_after_five, notices=asked)
    made = rig.losses(tmp_path)
    newest = latest_valid(tmp_path / "checkpoints")
    assert newest is not None
    assert steps_of(newest) == len(made) == 6, "the request is in the sum of the next step"
    rig.train(rig.config(), tmp_path, resume=True)
    assert rig.losses(tmp_path) == rig.losses(whole)
