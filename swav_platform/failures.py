"""The failure policy: machines fail, data is bad, and these are two different things.

A data fault (an image that can't be decoded, a shard whose content is damaged) becomes an outcome of its position. A machine fault
(storage that does not answer, expired credentials, a full disk) never consumes a position: `patiently` repeats the work, says what
it waits for, and gives up after a patience with the fault, so that the run stops and can be resumed.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import errno
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

from obstore.exceptions import (
    BaseError,
    GenericError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from swav_platform.errors import UserError

log = logging.getLogger("swav")
T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 20.0
"""Seconds between two tries; the pause doubles."""

QUIET = 5.0
"""Seconds of waiting that are not worth a line in a log."""

REMINDER = 60.0
"""Seconds between two lines of a log about the same wait."""


class Kind(enum.StrEnum):
    """What a machine fault is about."""

    UNREACHABLE = "unreachable"
    TIME_OUT = "time-out"
    DENIED = "denied"
    EXPIRED = "expired"
    NO_SPACE = "no space"
    MISSING = "missing"
    CHANGED = "changed"


_CURES = {
    Kind.UNREACHABLE: "Check the storage and the network",
    Kind.TIME_OUT: "Check the storage and the network",
    Kind.DENIED: "Check the permissions and the credentials",
    Kind.EXPIRED: "Renew the credentials",
    Kind.NO_SPACE: "Free some space",
    Kind.MISSING: "Bring it back",
    Kind.CHANGED: "Restore it as it was, or index it again",
}


class MachineFault(UserError):
    """A machine failed, not the data. place: a URL, path or name. why: a few words, without a full stop. advice: the whole message, if
    the usual one does not fit."""

    def __init__(self, kind: Kind, place: str, why: str, waited: float = 0.0, advice: str = "") -> None:
        super().__init__(kind, place, why, waited, advice)  # all of them, so that the exception can be pickled
        self.kind, self.place, self.why, self.waited, self.advice = kind, place, why, waited, advice

    def after(self, waited: float) -> Self:
        """The same fault after seconds of waiting."""
        same = copy.copy(self)
        same.waited = waited
        return same

    def __str__(self) -> str:
        return self.advice or self.told("resume the run with --resume")

    def told(self, then: str) -> str:
        """The usual message. then: what to do when the cause is gone."""
        after = f", for {duration(self.waited)}" if self.waited >= 1 else ""
        return f"{self.place} can't be used ({self.why}{after}). {_CURES[self.kind]}; then {then}."


@dataclass(frozen=True)
class Wait:
    """A component waits for a place. seconds: how long so far."""

    place: str
    why: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"waiting for {self.place}: {self.why}, {duration(self.seconds)}"


Tell = Callable[[Wait | None], None]
"""Called before each pause of a wait, and with None when the wait is over."""


def duration(seconds: float) -> str:
    """A length of time in words: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def patiently(
    work: Callable[[], T],
    patience: Callable[[MachineFault], float] | float,
    tell: Tell,
    *,
    place: str = "",
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """The result of `work`, which is repeated while it raises MachineFault.

    patience: seconds; after so long the last fault is raised. `work` should keep what it has done: it is called again as a whole.
    place: what to name if `work` itself takes long.
    """
    began, pause, told = clock(), FIRST_PAUSE, False

    def say(place: str, why: str) -> None:
        nonlocal told
        told = True
        tell(Wait(place, why, clock() - began))

    try:
        while True:
            try:
                with _while_slow(lambda: say(place, "no answer yet")) if place else contextlib.nullcontext():
                    return work()
            except MachineFault as fault:
                waited = clock() - began
                left = (patience(fault) if callable(patience) else patience) - waited
                if left <= 0:
                    raise fault.after(waited) from fault
                say(fault.place, fault.why)
            sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
    finally:
        if told:
            tell(None)


@contextlib.contextmanager
def _while_slow(say: Callable[[], None]) -> Iterator[None]:
    """Calls `say` every LONGEST_PAUSE seconds until the block ends, in a thread: a file system that hangs answers no caller."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LONGEST_PAUSE):
            say()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class LogWaits:
    """A `Tell` that writes lines to the log: one after `quiet` seconds, then one a minute, and one at the end."""

    def __init__(self, quiet: float = QUIET) -> None:
        self._quiet = quiet
        self._current: Wait | None = None
        self._said: float | None = None  # seconds of the wait at the last line

    def __call__(self, wait: Wait | None) -> None:
        if wait is None:
            if self._said is not None and self._current is not None:
                log.warning("end of the wait for %s, after %s", self._current.place, duration(self._current.seconds))
            self._said = None
        elif wait.seconds >= self._quiet if self._said is None else wait.seconds - self._said >= REMINDER:
            log.warning("%s", wait)
            self._said = wait.seconds
        self._current = wait


def machine_fault(error: BaseException, place: str) -> MachineFault | None:
    """The machine fault behind an exception of a storage; None for an exception of another kind.

    OSErrors and exceptions of obstore are machine faults: damaged content does not raise them. An error that wraps one
    (`raise … from error`) counts as it.
    """
    if isinstance(error, MachineFault):
        return error
    if isinstance(error, BaseError):
        return MachineFault(_remote_kind(error), place, reason(error))
    if isinstance(error, OSError):
        return MachineFault(_local_kind(error), place, error.strerror.lower() if error.strerror else reason(error))
    if isinstance(error, UserError) and error.__cause__ is not None:
        inner = machine_fault(error.__cause__, place)
        return inner and MachineFault(inner.kind, place, inner.why)
    return None


_OF_ERRNO = {
    errno.ENOENT: Kind.MISSING,
    errno.ENOTDIR: Kind.MISSING,
    errno.EACCES: Kind.DENIED,
    errno.EPERM: Kind.DENIED,
    errno.EROFS: Kind.DENIED,
    errno.EKEYEXPIRED: Kind.EXPIRED,
    errno.EKEYREVOKED: Kind.EXPIRED,
    errno.ENOSPC: Kind.NO_SPACE,
    errno.EDQUOT: Kind.NO_SPACE,
    errno.ETIMEDOUT: Kind.TIME_OUT,
}


def _local_kind(error: OSError) -> Kind:
    if isinstance(error, TimeoutError):
        return Kind.TIME_OUT
    if isinstance(error, FileNotFoundError):
        return Kind.MISSING
    return _OF_ERRNO.get(error.errno or 0, Kind.UNREACHABLE)


_EXPIRED = re.compile(r"expired|RequestTimeTooSkewed|InvalidToken|token.{0,20}invalid", re.IGNORECASE)
_STATUS = re.compile(r"status code: (\d{3})")


def _remote_kind(error: BaseError) -> Kind:
    text = str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    if isinstance(error, NotFoundError) or status in (404, 410):
        return Kind.MISSING
    if isinstance(error, PreconditionError):
        return Kind.CHANGED
    if _EXPIRED.search(text) and (status in (400, 401, 403) or isinstance(error, PermissionDeniedError | UnauthenticatedError)):
        return Kind.EXPIRED
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        return Kind.DENIED
    if isinstance(error, GenericError) and ("kind: Timeout" in text or "TimedOut" in text):
        return Kind.TIME_OUT
    return Kind.UNREACHABLE


_HEAD = re.compile(r"^(?:Generic \S+ error: )?(?:Error performing \w+ \S+ in \S+?,? )?")


def reason(error: BaseException) -> str:
    """The first line of an exception's message, without the URL."""
    text = str(error)
    line = _HEAD.sub("", text.partition("\n")[0]).strip(" -:") or type(error).__name__
    if "dns error" in text or "failed to lookup" in text:
        line = "no such host"
    elif "ConnectionRefused" in text:
        line = "connection refused"
    elif "kind: Timeout" in text or "TimedOut" in text:
        line = "no answer in time"
    elif status := re.search(r"status code: (\d+ [A-Z][\w ]*)", text):
        code = re.search(r"<Code>(\w+)</Code>", text)
        line = status[1].strip() + (f", {code[1]}" if code else "")
    return line[:200]
