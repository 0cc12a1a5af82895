"""`swav health` on runs that ended, stopped or wait, also those of older versions."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from swav_platform.cli.main import run
from swav_platform.config import from_tree
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import Health, write_health

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def old(tmp_path: Path) -> RunFolder:
    """A finished run of a version without verdicts."""
    folder = RunFolder(tmp_path / "runs" / "old")
    folder.path.mkdir(parents=True)
    config = from_tree(json.loads((FIXTURES / "metrics-format-1.config.json").read_text()))
    folder.write(config, index="gone", index_digest="i", samples=1000)
    shutil.copy(FIXTURES / "metrics-format-1.jsonl", folder.metrics)
    folder.write_summary({"run": "old"})
    return folder


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run(["health", *arguments, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_a_finished_run_of_an_older_version(old: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "health.html"
    found = report(capsys, str(old.path), "--html", str(page))
    assert (found["state"], found["step"], found["steps"]) == ("learning", 119, 120)
    assert "below that of uniform predictions" in str(found["because"])
    assert found["page"] == str(page)
    text = page.read_text()
    assert "train/loss" in text and "health/effective_rank" in text and "learning" in text  # noqa: PT018
    assert run(["health", str(old.path)]) == 0
    assert "learning" in capsys.readouterr().out


def test_a_run_that_makes_no_steps_waits(old: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (old.path / "summary.json").unlink()
    assert report(capsys, str(old.path))["state"] == "learning"
    os.utime(old.metrics, (1e9, 1e9))
    found = report(capsys, str(old.path))
    assert found["state"] == "waiting"
    assert "no step has been logged for" in str(found["because"])
    assert "--resume" in str(found["do"])


def test_what_ended_a_run_stays(old: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (old.path / "summary.json").unlink()
    write_health(old.path, Health("broken", "the loss of step 120 is nan", "Replay it.", time.time(), 120))
    assert report(capsys, str(old.path))["because"] == "the loss of step 120 is nan"


def test_a_run_without_steps(old: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    old.metrics.unlink()
    assert report(capsys, str(old.path))["state"] == "starting"


def test_wrong_use(old: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["health", str(old.path), "--html", "metrics.jsonl"]) == 2
    assert run(["health", "nowhere"]) == 2
    assert run(["replay", str(old.path), "--step", "120"]) == 2
    assert "steps 0 to 119" in capsys.readouterr().err
