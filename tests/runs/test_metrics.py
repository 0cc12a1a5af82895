"""Metrics: lines that only grow, are cut back to a checkpoint and read from any step on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from swav_platform.errors import UserError
from swav_platform.runs.metrics import MetricsWriter, last_metrics, metrics_state, read_metrics


def written(run: Path, steps: int) -> None:
    """Lines of very different lengths."""
    writer = MetricsWriter(run, 0)
    rng = random.Random(0)
    for step in range(steps):
        writer.append({"step": step, "loss": rng.random()} | ({"note": "x" * rng.randrange(500)} if step % 7 == 0 else {}))
    writer.close()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 200])
def test_reading_starts_at_any_step(tmp_path: Path, steps: int) -> None:
    written(tmp_path, steps)
    for first in range(steps + 2):
        assert [line["step"] for line in read_metrics(tmp_path, first)] == list(range(first, steps))
    assert (last_metrics(tmp_path) or {"step": -1})["step"] == steps - 1


def test_what_came_after_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    written(tmp_path, 50)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    assert [line["step"] for line in read_metrics(tmp_path, 48)] == [48, 49], "the unfinished line is left out"
    before = metrics_state(tmp_path)
    for keep in (50, 33, 33, 0):
        MetricsWriter(tmp_path, keep).close()
        assert [line["step"] for line in read_metrics(tmp_path)] == list(range(keep))
    assert metrics_state(tmp_path) != before


def test_steps_that_are_made_again_follow_on(tmp_path: Path) -> None:
    written(tmp_path, 9)
    writer = MetricsWriter(tmp_path, 6)
    for step in (6, 7):
        writer.append({"step": step, "again": True})
    writer.sync()
    writer.close()
    assert [(line["step"], "again" in line) for line in read_metrics(tmp_path, 5)] == [(5, False), (6, True), (7, True)]


def test_a_run_without_metrics(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path)) == []
    assert last_metrics(tmp_path) is None
    assert metrics_state(tmp_path) is None


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"metrics\.jsonl can't be written"):
        MetricsWriter(tmp_path / "file", 0)
