"""Metrics in MLflow equal the run's record: no gap, no point twice, whatever happened in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from swav_platform.registry.card import note_run_id
from swav_platform.registry.connect import connect
from swav_platform.registry.points import Sender, final_steps, is_repeatable, points_of
from swav_platform.registry.runs import open_run
from swav_platform.registry.tracker import Tracker
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import Health, write_health
from tests.registry.conftest import card, commit, line, of_record, record, recorded

KEYS = ("train/loss", "train/lr", "data/images_per_second")


@pytest.fixture
def opened(uri: str, make_recorded: Callable[..., RunFolder]) -> tuple[RunFolder, Any, str]:
    """A run of 4 steps without a checkpoint, a client and the run's id."""
    folder = make_recorded("r", uri, 0)
    record(folder, range(4))
    run_id = open_run(uri, "r", card())
    note_run_id(folder, card(), run_id)
    return folder, connect(uri), run_id


def check(folder: RunFolder, client: Any, run_id: str) -> None:
    for key in KEYS:
        assert recorded(client, run_id, key) == of_record(folder, key), key


def test_the_verdict_is_in_the_tags_of_the_run(opened: tuple[RunFolder, Any, str], uri: str) -> None:
    folder, client, run_id = opened
    write_health(folder.path, Health("stuck", "the loss is ln K", "Lower method.epsilon.", 1e9, 3))
    with Tracker(folder, uri):
        pass
    tags = client.get_run(run_id).data.tags
    found = {key.removeprefix("swav.health."): value for key, value in tags.items() if key.startswith("swav.health.")}
    assert found | {"restarts": "0"} == {
        "state": "stuck",
        "because": "the loss is ln K",
        "do": "Lower method.epsilon.",
        "since": "1000000000.0",
        "step": "3",
        "restarts": "0",
    }


def test_which_points_a_repeated_step_gives_again() -> None:
    assert [is_repeatable(key) for key in ("train/loss", "health/x", "train/collective_share", "data/read_ms", "eval/knn")] == [
        *(True, True, False, False, False)
    ]


def test_lines_of_older_runs_have_a_time_of_their_own() -> None:
    old = {"step": 3, "loss": 1.0, "train/loss": 1.0}
    assert points_of(old, 1000.0) == points_of(old, 1000.0) == [("train/loss", 1.0, 1000003, 3)]


def test_a_repeated_step_is_one_point(opened: tuple[RunFolder, Any, str]) -> None:
    folder, client, run_id = opened
    sender = Sender(folder, client, run_id)
    sender.send(final_steps(folder))
    assert recorded(client, run_id, "train/loss") == of_record(folder, "train/loss"), "at once"
    assert recorded(client, run_id, "data/images_per_second") == [], "may come again with another value"
    commit(folder, 2)
    sender.send(final_steps(folder))
    record(folder, range(2, 6))  # the group of ranks restarts from the checkpoint, here within the same process
    sender.send(final_steps(folder))
    record(folder, range(2, 9))  # the driver was killed
    commit(folder, 9)
    Sender(folder, client, run_id).send(final_steps(folder))
    check(folder, client, run_id)
    Sender(folder, client, run_id).send(final_steps(folder))
    check(folder, client, run_id)


def test_an_outage_leaves_no_gap(opened: tuple[RunFolder, Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, client, run_id = opened
    monkeypatch.setattr("swav_platform.registry.points.BATCH", 5)
    sender = Sender(folder, client, run_id)
    sent: list[Any] = []

    def log_batch(run: str, metrics: list[Any]) -> None:
        if len(sent) in (1, 3):  # the answer to the second request is lost, and the fourth request
            sent.append(None)
            if len(sent) == 2:
                type(client).log_batch(client, run, metrics=metrics)
            raise ConnectionError("away")
        sent.append(metrics)
        type(client).log_batch(client, run, metrics=metrics)

    monkeypatch.setattr(client, "log_batch", log_batch)
    commit(folder, 4)
    for _ in range(3):
        try:
            sender.send(final_steps(folder))
        except ConnectionError:
            continue
    assert len(sent) == 5, "three requests and two repeated ones"
    check(folder, client, run_id)


def test_gaps_of_an_older_version_are_filled(opened: tuple[RunFolder, Any, str]) -> None:
    folder, client, run_id = opened
    client.log_metric(run_id, "train/loss", of_record(folder, "train/loss")[2][1], step=2)
    commit(folder, 4)
    sender = Sender(folder, client, run_id)
    sender.send(final_steps(folder))
    assert recorded(client, run_id, "train/loss") == of_record(folder, "train/loss")


def test_values_that_are_no_numbers_are_sent(opened: tuple[RunFolder, Any, str]) -> None:
    folder, client, run_id = opened
    with folder.metrics.open("a") as file:
        file.write(json.dumps(line(4, **{"health/x": float("nan"), "health/y": float("inf")})) + "\n")
    Sender(folder, client, run_id).send(5)
    Sender(folder, client, run_id).send(5)
    assert len(recorded(client, run_id, "health/x")) == len(recorded(client, run_id, "health/y")) == 1
