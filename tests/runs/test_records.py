"""Working copies of runs in object stores do not stay for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from swav_platform.runs.folder import RunFolder
from swav_platform.runs.records import KEPT, delete_abandoned, discard


def test_a_complete_run_leaves_no_copy_and_others_only_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_CACHE", str(tmp_path))
    this, new, old = (RunFolder.at(f"s3://b/{name}") for name in ("runs/this", "runs/new", "others/old"))
    for run in (this, new, old):
        run.path.mkdir(parents=True)
        run.metrics.write_text("{}\n")
    tracking = old.path.parent / "mlflow.db"
    tracking.write_bytes(b"")
    before = time.time() - KEPT - 60
    for path in (this.metrics, this.path, old.metrics, old.path):
        os.utime(path, (before, before))
    delete_abandoned(this)
    assert (this.path.is_dir(), new.path.is_dir(), old.path.is_dir()) == (True, True, False)
    discard(new)
    assert not new.path.exists()
    assert tracking.exists()


def test_a_run_on_a_disk_is_no_copy(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path / "mine")
    run.path.mkdir()
    discard(run)
    assert run.path.is_dir()
