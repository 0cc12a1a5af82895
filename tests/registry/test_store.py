"""SQLite stores: made by many at once, killed while they are made, found half-made or broken."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swav_platform.registry import store
from swav_platform.registry.connect import connect
from swav_platform.registry.errors import TrackingError
from tests.registry.conftest import card


def tables(path: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(path)) as opened:
        return {name for (name,) in opened.execute("SELECT name FROM sqlite_master")}


@pytest.mark.stack
def test_first_runs_at_once_and_killed_ones_leave_a_store_that_works(root: Path) -> None:
    command = [sys.executable, str(root / "benchmarks" / "tracking_store.py"), "--together=3", "--kills=5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(root)})
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["together_ok"], found["after_kill_ok"]) == (3, 5), done.stderr
    assert found["kills_inside"] > 0


def test_a_half_migrated_store_is_migrated_and_keeps_its_runs(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, make_run_in: Callable[[str], str]
) -> None:
    path, run_id = tmp_path / "mlflow.db", make_run_in(uri)
    assert store.state(path) == "complete"
    with contextlib.closing(sqlite3.connect(path)) as opened:
        opened.execute("CREATE TABLE _alembic_tmp_tags (key TEXT)")
        opened.commit()
    assert store.state(path) == "partial"
    assert connect(uri).get_run(run_id).info.run_id == run_id
    assert store.state(path) == "complete"
    assert "_alembic_tmp_tags" not in tables(path)
    assert "half-migrated" in caplog.text


def test_a_store_of_an_older_mlflow_is_migrated(tmp_path: Path) -> None:
    import mlflow.store.db.utils as db
    from alembic import command
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path = tmp_path / "mlflow.db"
    engine = db.create_sqlalchemy_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = db._get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "+6")
    engine.dispose()
    assert store.state(path) == "partial"
    store.prepare(path)
    assert store.state(path) == "complete"
    assert [other.name for other in tmp_path.glob("*broken*")] == []


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_a_broken_store_is_set_aside(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    store.prepare(path)
    assert store.state(path) == "complete"
    (kept,) = tmp_path.glob("mlflow.db.broken-*")
    assert kept.read_bytes() == content
    assert str(kept) in caplog.text


def test_an_empty_file_is_no_broken_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.db").touch()
    store.prepare(tmp_path / "mlflow.db")
    assert store.state(tmp_path / "mlflow.db") == "complete"
    assert caplog.text == ""


def test_a_store_of_a_newer_mlflow_is_left_alone(uri: str, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as opened:
        opened.execute("UPDATE alembic_version SET version_num = 'of the future'")
        opened.commit()
    before = path.read_bytes()
    with pytest.raises(TrackingError):
        connect(uri).search_experiments()
    assert path.read_bytes() == before


def test_what_only_reads_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="There is no MLflow store"):
        connect(f"sqlite:///{tmp_path}/nothing.db", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:////a/b.db?timeout=3", "/a/b.db"),
        ("sqlite+pysqlite:////a/b.db", "/a/b.db"),
        ("sqlite:///b.db", str(Path("b.db").absolute())),
        ("sqlite://", None),
        ("http://host:5000", None),
        ("postgresql://host/db", None),
    ],
)
def test_the_file_of_a_uri(uri: str, path: str | None) -> None:
    assert store.path_of(uri) == (Path(path) if path else None)


@pytest.fixture
def make_run_in() -> Callable[[str], str]:
    from swav_platform.registry.runs import open_run

    return lambda uri: open_run(uri, "r", card())
