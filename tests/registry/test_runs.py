"""Runs in MLflow: opened again, deleted, renamed and purged in MLflow's page, and errors by kind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from swav_platform.config import load
from swav_platform.errors import UsageError
from swav_platform.registry import Card, start_run
from swav_platform.registry.connect import connect, short_limits
from swav_platform.registry.errors import TrackingError, explained
from swav_platform.registry.runs import end_run, open_run
from tests.registry.conftest import card


def test_a_run_is_opened_again_and_made_once(uri: str) -> None:
    told = card()
    run_id = open_run(uri, "é", told)
    end_run(uri, run_id, "KILLED")
    assert open_run(uri, "é", card(run_id=run_id)) == run_id
    assert open_run(uri, "é", card(uid=told.uid)) == run_id, "the answer to the first request was lost"
    run = connect(uri).get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "é"
    assert run.data.params == {"seed": "31", "method.name": "swav"}
    assert run.data.tags["swav.run"] == "r"


def test_settings_go_in_one_request_and_the_dataset_is_recorded(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    requests: list[int] = []
    real = MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, **more: Any) -> None:
        requests.append(len(more["params"]))
        real(self, run_id, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    told = card(dataset={"name": "index", "digest": "d" * 36, "source": "/runs/r/index"})
    run_id = open_run(uri, "r", told)
    open_run(uri, "r", card(run_id=run_id, dataset=told.dataset))
    assert requests == [2]
    (data,) = connect(uri).get_run(run_id).inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("index", "d" * 36)


def test_settings_of_any_name_are_recorded(uri: str) -> None:
    names = ("größe", "a(b)", "x@y", "a//b", "../c", "k" * 300, "end/")
    run_id = open_run(uri, "r", Card("it's", {}, {f"views.{name}": "v\0" for name in names} | {"..": "w"}))
    found = connect(uri).get_run(run_id).data.params
    assert {"views.größe", "views.a_b_", "views.x_y", "views.a/_/b", "views.../c", "views.end/_", "__"} <= set(found)
    assert len(found) == len(names) + 1
    assert found["views.größe"] == "v"


def test_a_run_without_its_settings_is_recorded(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("swav_platform.registry.runs._param_key", lambda key: f"({key})")
    run_id = open_run(uri, "r", card())
    assert connect(uri).get_run(run_id).info.status == "RUNNING"
    assert "Settings of run r are not recorded" in caplog.text


def test_a_run_that_this_server_does_not_know_is_opened_anew(tmp_path: Path, uri: str) -> None:
    config = load(None, [f"tracking.uri={uri}", f"run.out={tmp_path}", "run.name=moved"])
    unknown = "0" * 32
    opened = start_run(config, unknown, {}, {"seed": 31})
    assert opened != unknown
    assert start_run(config, opened, {}, {}) == opened


def test_a_deleted_run_is_restored(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    run_id = open_run(uri, "r", card())
    connect(uri).delete_run(run_id)
    assert open_run(uri, "r", card(run_id=run_id)) == run_id
    assert connect(uri).get_run(run_id).info.lifecycle_stage == "active"
    assert "restored" in caplog.text


def test_a_purged_run_is_replaced(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    run_id = open_run(uri, "r", card())
    connect(uri).delete_run(run_id)
    SqlAlchemyStore(uri, "x")._hard_delete_run(run_id)
    again = open_run(uri, "r", card(run_id=run_id))
    assert again != run_id
    assert "a new one records it" in caplog.text


def test_a_deleted_experiment_is_restored(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    run_id = open_run(uri, "r", card())
    client = connect(uri)
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    assert open_run(uri, "r", card(run_id=run_id)) == run_id
    client.delete_experiment(experiment)
    other = open_run(uri, "other", card())
    assert client.get_run(other).info.experiment_id == experiment
    assert client.get_experiment(experiment).lifecycle_stage == "active"
    assert caplog.text.count("has been restored") >= 2


def test_a_renamed_experiment_is_found(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    client, run_id = connect(uri), open_run(uri, "r", card())
    experiment = client.get_run(run_id).info.experiment_id
    client.rename_experiment(experiment, "paper")
    assert open_run(uri, "r", card(run_id=run_id)) == run_id
    assert client.get_run(open_run(uri, "other", card())).info.experiment_id == experiment
    assert "is called paper" in caplog.text


class Answering(BaseHTTPRequestHandler):
    """Answers each request with the status that is the first part of the path's prefix."""

    def answer(self) -> None:
        status = int(self.path.split("/")[1])
        body = b"<html>not MLflow</html>"
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("/401", "forbidden", "gives no permission"),
        ("/403", "forbidden", "gives no permission"),
        ("/404", "other", "not an answer of MLflow"),
        ("/503", "busy", "can't work now"),
        ("/200", "other", "could not handle"),
    ],
)
def test_errors_of_a_server_that_answers(
    path: str, kind: str, said: str, answering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=said) as caught:
        end_run(f"{answering}{path}", "id", "FAILED")
    assert caught.value.kind == kind
    assert "is its address" not in str(caught.value), "someone answered there"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "http://nowhere.invalid:5000"])
def test_a_server_that_is_not_there(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match="does not answer") as caught:
        end_run(uri, "id", "FAILED")
    assert caught.value.kind == "away"
    assert "MLFLOW_TRACKING_URI is its address" in str(caught.value)
    assert "HTTPConnectionPool" not in str(caught.value)


def test_an_address_that_is_none() -> None:
    with pytest.raises(UsageError, match="foo://x is not an address of MLflow"):
        connect("foo://x")


def test_messages_hide_the_password() -> None:
    with pytest.raises(TrackingError, match=r"me:\*\*\*@host") as caught, explained("http://me:secret@host:5000"):
        raise ConnectionError("no answer from http://me:secret@host:5000")
    assert "secret" not in str(caught.value)


def test_limits_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with short_limits():
        assert (os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) == ("77", "1")
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
