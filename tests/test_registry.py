"""MLflow: runs that a server does not know, and passwords that nobody is to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from swav_platform import registry
from swav_platform.config import load
from swav_platform.errors import UserError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host:5000/x", "https://me:***@host:5000/x"),
        ("postgresql://me:p@ss@host/db", "postgresql://me:***@host/db"),
        ("call to http://me:secret@host/api failed", "call to http://me:***@host/api failed"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert registry.without_password(text) == shown


def test_messages_hide_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> None:
        raise ConnectionError(f"no answer from {uri}")

    monkeypatch.setattr(registry, "_client", refuse)
    with pytest.raises(UserError, match="host") as caught:
        registry.finish_run("http://me:secret@host:5000", "id", "FAILED")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "cause"),
    [
        ("http://127.0.0.1:9", "(Connection refused)"),
        (
            "foo://x",
            "(Model registry functionality is unavailable; got unsupported URI 'foo://x' for model registry data storage)",
        ),
    ],
)
def test_messages_tell_the_cause_and_no_more(uri: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError) as caught:
        registry.finish_run(uri, "id", "FAILED")
    assert cause in str(caught.value)
    assert "MLFLOW_TRACKING_URI" in str(caught.value)
    assert "HTTPConnectionPool" not in str(caught.value)


def test_a_run_that_this_server_does_not_know_is_opened_anew(tmp_path: Path) -> None:
    config = load(None, [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", f"run.out={tmp_path}", "run.name=moved"])
    unknown = "0" * 32
    opened = registry.start_run(config, unknown, {}, {"seed": 31})
    assert opened != unknown
    assert registry.start_run(config, opened, {}, {}) == opened
