"""One writer of a run in an object store: a record that its holder renews, and that another process may take when it has expired.

The record is JSON: `writer` (id), `host`, `pid`, `expires` (seconds since 1970; 0 when released). It changes by compare-and-swap only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swav_platform.errors import UserError
from swav_platform.runs.storage import Stale, Storage, Stored, Version

log = logging.getLogger("swav")

_SECONDS = 30.0  # a lease is valid; SWAV_LEASE_SECONDS
_SKEW = 60.0  # seconds that clocks of machines may differ


class Held(Exception):
    """Another process holds the lease. The message says which one."""


@dataclass
class Lease:
    """A lease that this process holds. `confirm` must precede every write that makes other writes valid."""

    storage: Storage
    key: str
    version: Version
    writer: str
    lost: str = ""  # who took it
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def confirm(self) -> None:
        """Renews the lease. Raises UserError if another process has taken it, and errors of the storage."""
        with self._turn:
            if not self.lost:
                try:
                    self.version = self.storage.swap(self.key, _record(self.writer), self.version)
                except Stale:
                    found = self.storage.look(self.key)
                    self.lost = _holder(_parsed(found)) if found else "a process that deleted the lease"
        if self.lost:
            raise UserError(
                f"This process no longer writes to {self.storage.place}, because {self.lost} took over the run. Checkpoints that it wrote "
                f"stay valid; end one of the two."
            )

    def release(self) -> None:
        """The next process need not wait."""
        with self._turn, contextlib.suppress(Exception):
            if not self.lost:
                self.storage.swap(self.key, _record(self.writer, expires=0), self.version)


@contextlib.contextmanager
def leased(storage: Storage, key: str, *, take_over: bool = False) -> Iterator[Lease]:
    """Holds a lease for the block; a thread renews it. Raises Held if another process does.

    take_over: takes it from any holder, who notices at its next `confirm`.
    """
    writer = uuid.uuid4().hex
    lease = Lease(storage, key, _take(storage, key, writer, take_over), writer)
    ended = threading.Event()
    threading.Thread(target=_renew, args=(lease, ended), name="lease", daemon=True).start()
    try:
        yield lease
    finally:
        ended.set()
        lease.release()


def seconds() -> float:
    """How long a lease is valid without renewal."""
    return float(os.environ.get("SWAV_LEASE_SECONDS", _SECONDS))


def _renew(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(seconds() / 3):
        try:
            lease.confirm()
        except UserError as error:
            log.warning(str(error))
            return
        except Exception as error:  # the storage does not answer; nobody else can take the lease meanwhile
            log.debug("lease: %s", error)


def _take(storage: Storage, key: str, writer: str, take_over: bool) -> Version:
    while True:
        found = storage.look(key)
        if found is not None and not take_over and _may_be_alive(_parsed(found)):
            _wait_for_end(storage, key, found)
        with contextlib.suppress(Stale):  # another process was faster
            return storage.swap(key, _record(writer), None if found is None else found.version)


def _wait_for_end(storage: Storage, key: str, found: Stored) -> None:
    """Returns when the holder has not renewed its lease while it was valid, by this machine's clock. Raises Held if it has."""
    holder = _parsed(found)
    log.warning(
        f"{_holder(holder)} has held the run {storage.place}; waiting up to {seconds():.0f} s to see whether it still runs."
    )
    end = time.monotonic() + seconds()
    while time.monotonic() < end:
        time.sleep(seconds() / 20)
        now = storage.look(key)
        if now is None or not _parsed(now)["expires"]:
            return
        if now.version != found.version:
            raise Held(_holder(_parsed(now)))


def _record(writer: str, expires: float | None = None) -> bytes:
    at = time.time() + seconds() if expires is None else expires
    record = {"writer": writer, "host": socket.gethostname(), "pid": os.getpid(), "process": _process(os.getpid()), "expires": at}
    return json.dumps({**record, "renewal": uuid.uuid4().hex}).encode()  # unique: see `Storage.swap`


def _parsed(found: Stored) -> dict[str, Any]:
    """The record. One that can't be read has expired."""
    try:
        return {"host": "", "pid": 0, "process": "", "expires": 0.0, **json.loads(found.data)}
    except (ValueError, TypeError):
        return {"host": "", "pid": 0, "process": "", "expires": 0.0}


def _holder(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['host']}"


def _may_be_alive(record: dict[str, Any]) -> bool:
    if record["expires"] + _SKEW < time.time():
        return False
    here = _process(os.getpid()).rpartition("/")[0]
    if here and str(record["process"]).startswith(f"{here}/"):
        return bool(_process(int(record["pid"])) == record["process"])
    return True


def _process(pid: int) -> str:
    """Identity of a process: boot of its machine, its namespace, its start. Empty for a process that has ended or can't be seen."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        names = os.readlink("/proc/self/ns/pid")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state[0] == "Z" else f"{boot}/{names}/{pid}-{state[19]}"
