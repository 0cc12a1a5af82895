"""What a run does about its verdict: plain loops of a tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from swav_platform.errors import UserError
from swav_platform.runs.health_file import Health, read_health
from swav_platform.training.health import monitor
from swav_platform.training.health.subject import Finding
from swav_platform.training.health.verdict import Judge


def settings(rig: ModuleType, **options: Any) -> Any:
    return rig.config(train__log_every=1, train__steps=12, **options)


@pytest.fixture
def diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that calls any run diverging from step 6 on whose learning rate has not been lowered."""

    class Strict(Judge):
        def add(self, line: Any) -> bool:
            news = super().add(line)
            if line["step"] >= 6 and self.subject.config.train.optimiser.lr > 0.005:
                self.finding = Finding("diverging", "it jumps", "Lower train.optimiser.lr.", {"train.optimiser.lr": 0.0025})
                self.health, self.well_until = Health("diverging", "it jumps", "Lower it.", 1.0, line["step"]), 5
            return news

    monkeypatch.setattr(monitor, "Judge", Strict)


def test_a_warning_changes_nothing(rig: ModuleType, tmp_path: Path, diverges: None, caplog: pytest.LogCaptureFixture) -> None:
    rig.train(settings(rig), tmp_path)
    assert [r.message for r in caplog.records if "diverging" in r.message] == [
        "Step 6: the run is diverging: it jumps. Lower it."
    ], "once"
    health = read_health(tmp_path)
    assert health is not None
    assert (health.state, health.step) == ("diverging", 11)


def test_stop(rig: ModuleType, tmp_path: Path, diverges: None) -> None:
    with pytest.raises(UserError, match=r"diverging at step 6: it jumps, so it stopped \(train.health\)"):
        rig.train(settings(rig, train__health="stop"), tmp_path)
    assert len(rig.losses(tmp_path)) == 7


def test_rollback(rig: ModuleType, tmp_path: Path, diverges: None) -> None:
    """From the checkpoint of step 4, the last before the first sign of trouble, with the remedy."""
    result = rig.train(settings(rig, train__health="rollback", train__checkpoint_every=2), tmp_path)
    assert result.steps == 12
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    (remedy,) = json.loads((tmp_path / "remedies.json").read_text())
    assert (remedy["step"], remedy["start"], remedy["settings"]) == (6, 4, {"train.optimiser.lr": 0.0025})
    assert lines[3]["lr"] > 4 * lines[4]["lr"] * 0.9
    rig.train(settings(rig), tmp_path / "plain")
    assert rig.losses(tmp_path)[:4] == rig.losses(tmp_path / "plain")[:4]


def test_without_a_remedy_it_stops(rig: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hopeless(Judge):
        def add(self, line: Any) -> bool:
            news = super().add(line)
            self.health = Health("broken", "all images are the same", "Look at them.", 1.0, line["step"])
            return news

    monkeypatch.setattr(monitor, "Judge", Hopeless)
    with pytest.raises(UserError, match="all images are the same"):
        rig.train(settings(rig, train__health="rollback"), tmp_path)
    assert not (tmp_path / "remedies.json").exists()


def test_measuring_changes_no_bit(rig: ModuleType, whole: Path, tmp_path: Path) -> None:
    rig.train(rig.config(train__log_every=1), tmp_path)
    assert rig.losses(tmp_path) == rig.losses(whole)


def test_the_drift_of_the_queue_is_measured_once_it_is_full(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "health/queue_drift" in line] == [5, 8, 9]
    assert all(line["health/queue_drift"] > 0 for line in lines if "health/queue_drift" in line)
