"""health.json: what a run waits for is there while it waits, and only then."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from swav_platform.failures import Wait
from swav_platform.runs.health_file import Health, read_health, say_waited, say_waiting, to_log_and_health, write_health


def test_a_wait_is_noted_with_its_beginning_and_taken_back(tmp_path: Path) -> None:
    assert read_health(tmp_path) is None
    say_waiting(tmp_path, Wait("s3://b/a.tar", "connection refused", 40.0))
    first = read_health(tmp_path)
    assert first is not None
    assert (first.state, first.waiting_for, first.because) == ("waiting", "s3://b/a.tar", "connection refused")
    assert 35 < time.time() - first.since < 60
    say_waiting(tmp_path, Wait("s3://b/a.tar", "503 Service Unavailable", 60.0))
    again = read_health(tmp_path)
    assert again is not None
    assert (again.since, again.because) == (first.since, "503 Service Unavailable")
    assert str(again).startswith("waiting for s3://b/a.tar: 503 Service Unavailable, ")
    say_waited(tmp_path)
    assert read_health(tmp_path) is None
    say_waited(tmp_path)


def test_other_verdicts_stay(tmp_path: Path) -> None:
    write_health(tmp_path, Health("learning", "entropy falls", step=7))
    say_waited(tmp_path)
    assert read_health(tmp_path) == Health("learning", "entropy falls", step=7)


def test_a_damaged_file_is_no_verdict(tmp_path: Path) -> None:
    for text in ("", "[]", "{", '{"because": "no state"}'):
        (tmp_path / "health.json").write_text(text)
        assert read_health(tmp_path) is None


def test_waits_are_in_the_log_and_in_the_file_until_they_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    say_waiting(tmp_path, Wait("/data/a.tar", "left by a killed attempt", 9.0))
    tell = to_log_and_health(tmp_path)
    assert read_health(tmp_path) is None
    tell(Wait("s3://b/a.tar", "connection refused", 40.0))
    found = read_health(tmp_path)
    assert found is not None
    assert (found.state, found.waiting_for) == ("waiting", "s3://b/a.tar")
    assert "waiting for s3://b/a.tar: connection refused, 40 s" in caplog.text
    tell(None)
    assert read_health(tmp_path) is None
