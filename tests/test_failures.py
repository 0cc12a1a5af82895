"""Machine faults are told from everything else, waited for with a message, and end in an error that names them."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import pickle

import pytest
from obstore.exceptions import GenericError, NotFoundError, PermissionDeniedError, PreconditionError, UnauthenticatedError

from swav_platform.errors import UserError
from swav_platform.failures import Kind, LogWaits, MachineFault, Wait, duration, machine_fault, patiently

_S3 = "Generic S3 error: Error performing GET http://h/b/a.tar in 1ms - Server returned non-2xx status code: "


@pytest.mark.parametrize(
    ("error", "kind", "why"),
    [
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), Kind.MISSING, "no such file or directory"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), Kind.DENIED, "permission denied"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Kind.NO_SPACE, "no space left on device"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), Kind.UNREACHABLE, "stale file handle"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), Kind.UNREACHABLE, "input/output error"),
        (OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)), Kind.UNREACHABLE, "transport endpoint is not connected"),
        (TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), Kind.TIME_OUT, "connection timed out"),
        (ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)), Kind.UNREACHABLE, "connection reset by peer"),
        (OSError("a.tar stops at byte 17"), Kind.UNREACHABLE, "a.tar stops at byte 17"),
        (GenericError(f"{_S3}503 Service Unavailable: \n"), Kind.UNREACHABLE, "503 Service Unavailable"),
        (GenericError("Generic S3 error: HTTP error: error sending request\n ConnectionRefused"), Kind.UNREACHABLE, "refused"),
        (GenericError("Generic S3 error: HTTP error: error sending request\n kind: Timeout"), Kind.TIME_OUT, "no answer in time"),
        (GenericError(f"{_S3}403 Forbidden: "), Kind.DENIED, "403 Forbidden"),
        (GenericError(f"{_S3}410 Gone: "), Kind.MISSING, "410 Gone"),
        (NotFoundError("Object at location a.tar not found"), Kind.MISSING, "not found"),
        (PermissionDeniedError(f"{_S3}403 Forbidden: <Error><Code>InvalidAccessKeyId</Code>"), Kind.DENIED, "InvalidAccessKeyId"),
        (PermissionDeniedError(f"{_S3}403 Forbidden: <Error><Code>ExpiredToken</Code>"), Kind.EXPIRED, "ExpiredToken"),
        (GenericError(f"{_S3}400 Bad Request: <Error><Code>ExpiredToken</Code>"), Kind.EXPIRED, "400 Bad Request"),
        (UnauthenticatedError("no credentials"), Kind.DENIED, "no credentials"),
        (PreconditionError("etag"), Kind.CHANGED, "etag"),
    ],
)
def test_errors_of_storages_have_a_kind(error: Exception, kind: Kind, why: str) -> None:
    fault = machine_fault(error, "s3://b/a.tar")
    assert fault is not None
    assert (fault.kind, fault.place) == (kind, "s3://b/a.tar")
    assert why in fault.why
    assert str(fault).startswith("s3://b/a.tar can't be used (")


def test_a_wrapped_error_counts_as_its_cause() -> None:
    try:
        raise UserError("The cache can't be written.") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except UserError as error:
        fault = machine_fault(error, "/cache")
    assert fault is not None
    assert fault.kind is Kind.NO_SPACE


@pytest.mark.parametrize("error", [ValueError("x"), EOFError("damaged"), UserError("x"), KeyError("x"), MemoryError()])
def test_other_errors_are_no_machine_faults(error: Exception) -> None:
    assert machine_fault(error, "x") is None


def test_a_fault_survives_pickling() -> None:
    fault = pickle.loads(pickle.dumps(MachineFault(Kind.DENIED, "/a", "permission denied", 61.0)))
    assert (fault.kind, fault.place, fault.why, fault.waited) == (Kind.DENIED, "/a", "permission denied", 61.0)
    assert "permission denied, for 61 s" in str(fault)


class Clock:
    """Time passes only while someone sleeps."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def failing(until: float, clock: Clock) -> str:
    if clock.now < until:
        raise MachineFault(Kind.UNREACHABLE, "s3://b", "connection refused")
    return "done"


def test_waiting_is_told_and_ends_with_the_result() -> None:
    clock, told = Clock(), list[Wait | None]()
    assert patiently(lambda: failing(60, clock), 100, told.append, sleep=clock.sleep, clock=clock) == "done"
    assert told[-1] is None
    waits = [wait.seconds for wait in told if wait]
    assert waits == sorted(waits)
    assert waits[0] == 0
    assert max(b - a for a, b in itertools.pairwise(waits)) <= 20
    assert str(Wait("s3://b", "connection refused", 40.2)) == "waiting for s3://b: connection refused, 40 s"


def test_patience_ends_with_the_fault() -> None:
    clock, told = Clock(), list[Wait | None]()
    with pytest.raises(MachineFault, match="connection refused, for 100 s") as raised:
        patiently(lambda: failing(1e9, clock), 100, told.append, sleep=clock.sleep, clock=clock)
    assert clock.now == 100
    assert raised.value.waited == 100
    assert told[-1] is None


def test_other_errors_are_not_repeated() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        patiently(work, 100, lambda wait: None)
    assert len(calls) == 1


def test_work_that_succeeds_says_nothing() -> None:
    told: list[Wait | None] = []
    assert patiently(lambda: 7, 100, told.append) == 7
    assert told == []


def test_the_log_is_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    tell = LogWaits()
    with caplog.at_level(logging.WARNING, "swav"):
        for seconds in (0, 1, 3, 7, 15, 35, 55, 75, 95):
            tell(Wait("/data", "permission denied", seconds))
        tell(None)
        tell(Wait("/data", "permission denied", 1))
        tell(None)
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for /data: permission denied, 7 s",
        "waiting for /data: permission denied, 75 s",
        "end of the wait for /data, after 95 s",
    ]


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 40, 1800, 12600)] == ["0 s", "40 s", "30 min", "3.5 h"]
