"""One writer of a run: leases in object stores, locks on disks."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swav_platform.errors import UserError
from swav_platform.runs import lease as leases
from swav_platform.runs.folder import LEASE, RunFolder
from swav_platform.runs.lease import Held, leased
from swav_platform.runs.storage import storage_of
from tests.s3 import S3Server

STRANGER = {"writer": "w", "host": "elsewhere", "pid": 7, "process": "another boot/pid:[1]/7-1"}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAV_LEASE_SECONDS", "1.5")


def record(seconds: float, **changes: object) -> bytes:
    return json.dumps({**STRANGER, "expires": time.time() + seconds, **changes}).encode()


def test_two_writers_are_refused_one_after_the_other_is_not(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    with leased(storage, "LEASE") as first:
        with pytest.raises(Held, match=r"process \d+ on"), leased(storage, "LEASE"):
            pass
        first.confirm()
    began = time.monotonic()
    with leased(storage, "LEASE") as second:
        second.confirm()
    assert time.monotonic() - began < 1, "a released lease needs no waiting"


@pytest.mark.stack
def test_two_commands_in_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    s3.store("leases").put("probe", b"makes the bucket")
    url = f"s3://leases/{tmp_path.name}/mine"
    with RunFolder.at(url).claimed() as confirm:
        said = r"Run mine in s3://leases.* is already running \(process \d+ on .*--name"
        with pytest.raises(UserError, match=said), RunFolder.at(url).claimed():
            pass
        confirm()


def test_a_writer_that_was_replaced_may_not_write(tmp_path: Path) -> None:
    """Rank 0 of a new attempt does not wait for that of the old one."""
    storage = storage_of(tmp_path)
    with leased(storage, "LEASE", take_over=True) as old, leased(storage, "LEASE", take_over=True) as new:
        new.confirm()
        with pytest.raises(UserError, match=r"no longer writes to .* because process \d+ on .* took over"):
            old.confirm()
        new.confirm()


def test_a_writer_on_another_machine_that_died_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = storage_of(tmp_path)
    storage.put("LEASE", record(seconds=1.5))
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), leased(storage, "LEASE"):
        assert time.monotonic() - began >= 1.5, "whatever the clocks say"
    assert "process 7 on elsewhere has held the run" in caplog.text


@pytest.mark.parametrize("content", [record(-3600), record(0, expires=0), b"rubbish"], ids=["expired", "released", "unreadable"])
def test_what_needs_no_waiting(tmp_path: Path, content: bytes) -> None:
    storage = storage_of(tmp_path)
    storage.put("LEASE", content)
    began = time.monotonic()
    with leased(storage, "LEASE"):
        assert time.monotonic() - began < 1


def test_a_writer_on_this_machine_that_was_killed_is_seen_at_once(tmp_path: Path, root: Path) -> None:
    code = (
        "import os, sys; from swav_platform.runs.lease import leased; from swav_platform.runs.storage import storage_of\n"
        "with leased(storage_of(sys.argv[1]), 'LEASE'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root).returncode == -9
    assert json.loads(storage_of(tmp_path).get("LEASE"))["expires"] > time.time()
    began = time.monotonic()
    with leased(storage_of(tmp_path), "LEASE"):
        assert time.monotonic() - began < 1


def test_a_held_lease_is_renewed(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    with leased(storage, LEASE):
        before = json.loads(storage.get(LEASE))["expires"]
        time.sleep(1.2)
        assert json.loads(storage.get(LEASE))["expires"] > before
    assert json.loads(storage.get(LEASE))["expires"] == 0


def test_a_process_that_ended_has_no_identity() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert leases._process(ended.pid) == ""


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"has no locks \(No locks available\).*--out"), RunFolder(tmp_path / "mine").claimed():
        pass


def test_a_run_on_disk_has_one_command(tmp_path: Path) -> None:
    one, two = RunFolder(tmp_path / "mine"), RunFolder(tmp_path / "mine")
    with one.claimed(), pytest.raises(UserError, match="already running"), two.claimed():
        pass
