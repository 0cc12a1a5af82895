"""What a run tells about itself can be read from its log and from health.json."""

from __future__ import annotations

from pathlib import Path

from swav_platform.cluster.report import Report, read_log
from swav_platform.cluster.room import Group
from swav_platform.runs.health_file import Health, read_health, write_health


def test_waits_are_told_and_end(tmp_path: Path) -> None:
    lines = list[str]()
    report = Report(tmp_path, lines.append)
    assert read_log("") == {
        "step": None,
        "steps": None,
        "workers": None,
        "waiting_for": None,
        "restarts": 0,
        "health": "starting",
    }
    report.group(Group(2, 3))
    report.restart("worker 1 was lost")
    report.waiting("CPUs: 3 for 2 workers and data tasks, 2 on 1 node")
    told = read_log("\n".join([*lines, "another line"]))
    assert told["waiting_for"] == "CPUs: 3 for 2 workers and data tasks, 2 on 1 node"
    assert (told["workers"], told["restarts"], told["health"]) == (2, 1, "waiting")
    health = read_health(tmp_path)
    assert health is not None
    assert (health.state, health.waiting_for, health.workers, health.restarts) == ("waiting", told["waiting_for"], 2, 1)
    for _ in range(3):
        report.waiting("CPUs: 3 for 2 workers and data tasks, 2 on 1 node")
    assert len(lines) == 3, "a wait is repeated once a minute, not each second"
    report.group(Group(1, 1))
    assert read_log("\n".join(lines))["waiting_for"] is None
    after = read_log("\n".join([*lines, "step 40/200 loss 2.1"]))
    assert (after["step"], after["steps"], after["workers"], after["health"]) == (40, 200, 1, "learning")


def test_seconds_in_a_text_do_not_make_a_new_wait(tmp_path: Path) -> None:
    lines = list[str]()
    report = Report(tmp_path, lines.append)
    for seconds in (21, 22, 23):
        report.waiting(f"worker 1: no sign of life for {seconds} s, so the process is stopped")
    assert len(lines) == 1


def test_what_the_loop_noted_is_told_instead(tmp_path: Path) -> None:
    lines = list[str]()
    write_health(tmp_path, Health("waiting", "connection refused", waiting_for="s3://bucket"))
    Report(tmp_path, lines.append).waiting("rows of step 3")
    assert read_log(lines[0])["waiting_for"] == "s3://bucket: connection refused"
    health = read_health(tmp_path)
    assert health is not None
    assert health.waiting_for == "s3://bucket"
