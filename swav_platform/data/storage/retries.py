"""Short retries of operations on object stores, for commands and for work that is not part of reading shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, NotFoundError, PreconditionError

from swav_platform.data.storage.objects import Changed, refused
from swav_platform.failures import LogWaits, MachineFault, machine_fault, patiently

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds in which an operation is repeated, besides the retries of obstore."""

_QUIET = 15.0  # seconds that an operation may take without a line in the log


def persistently(url: str, operation: Callable[[], T]) -> T:
    """The result of an operation, which is repeated if it failed on its way.

    Raises FileNotFoundError if there is no such object, AlreadyExistsError and PreconditionError of obstore for conditions that don't hold,
    and otherwise MachineFault.
    """

    def once() -> T:
        try:
            return operation()
        except (AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, OSError) as error:
            if isinstance(error, NotFoundError | FileNotFoundError) and "NoSuchBucket" not in str(error):
                raise FileNotFoundError(f"{url} does not exist") from error
            raise _explained(url, error) from error

    return patiently(once, _patience, LogWaits(_QUIET))


def _explained(url: str, error: Exception) -> MachineFault:
    from swav_platform.data.storage.errors import explain  # imports pyarrow

    fault = machine_fault(error, url)
    assert fault is not None, "these exceptions are machine faults"
    return MachineFault(fault.kind, url, fault.why, advice=explain(url, error))


def _patience(fault: MachineFault) -> float:
    """None for requests that a server refuses."""
    error = fault.__cause__
    return PATIENCE if isinstance(error, GenericError | Changed) and not refused(error) else 0.0
