"""A row made in a child process, so that an image which kills its decoder takes the child and nothing else."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

import pyarrow as pa

from swav_platform.config import Config
from swav_platform.data.index.lookup import IndexLine
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.data.order.plan import RowSpec
from swav_platform.data.samples import Killers, ReadFailure
from swav_platform.rows.make import Fetch, Replacement, make_row
from swav_platform.rows.table import to_table

DEATHS = 2
"""Children that a sample may kill; then a stand-in takes its place."""

MEMORY = 4 * 2**30
"""Bytes that a child may take beyond those of its parent: more than any image within the default policy needs."""

_GREW = 2**30  # a child that was killed with so much more memory than its parent was killed for it
_UNEXPLAINED = 5


def make_row_guarded(
    spec: RowSpec, fetch: Fetch, replacement: Replacement, config: Config, killers: Killers
) -> tuple[pa.Table, Killers]:
    """`to_table(make_row(…))` in a child process, and the samples that killed two children.

    Those in `killers` are not decoded. Which ones are found depends on the samples alone: a child that somebody else killed is
    one death of the sample in its hands, not two. Only decoding is done in the child; bytes are read by this process.
    Raises RuntimeError if children die before they have a sample in their hands.
    """
    found: Killers = {}
    deaths: Counter[int | None] = Counter()
    while True:
        table, sample, why = _attempt(spec, spared(fetch, killers | found), replacement, config)
        if table is not None:
            return table, found
        deaths[sample] += 1
        if sample is not None and deaths[sample] == DEATHS:
            found[sample] = why
        if deaths[None] == _UNEXPLAINED:
            raise RuntimeError(
                f"a process that makes row {spec.row} ended {_UNEXPLAINED} times before its first sample: {why.detail}"
            )


def spared(fetch: Fetch, killers: Mapping[int, ReadFailure]) -> Fetch:
    """`fetch`, but samples known to kill come as the reason why they are not decoded."""
    if not killers:
        return fetch

    def fetch_others(numbers: Sequence[int]) -> dict[int, tuple[IndexLine, bytes | ReadFailure]]:
        return {n: (line, killers.get(n, data)) for n, (line, data) in fetch(numbers).items()}

    return fetch_others


def killers_among(events: Iterable[Event]) -> Killers:
    """What a ledger tells of samples that kill."""
    deadly = (Outcome.DECODE_CRASH, Outcome.DECODE_MEMORY)
    return {event.sample: ReadFailure(event.detail, event.outcome) for event in events if event.outcome in deadly}


def _attempt(
    spec: RowSpec, fetch: Fetch, replacement: Replacement, config: Config
) -> tuple[pa.Table | None, int | None, ReadFailure]:
    """The row's table, or none and the sample in whose hands the child died, with what can be said about its end."""
    ours, theirs = Pipe()
    child = os.fork()
    if child == 0:
        ours.close()
        _be_child(theirs, lambda asking: to_table(make_row(spec, asking, replacement, config)))
    theirs.close()
    table, sample = None, None
    try:
        while True:
            what, value = ours.recv()
            if what == "decode":
                sample = value
            elif what == "fetch":
                ours.send(fetch(value))
            elif what == "error":
                raise value
            else:
                table = value
    except (EOFError, ConnectionError):
        pass
    finally:
        ours.close()
        if table is None:
            os.kill(child, signal.SIGKILL)  # it may wait for an answer that failed
        _, status, usage = os.wait4(child, 0)
    return table, sample, _reason(status, usage.ru_maxrss * 1024)


def _be_child(pipe: Connection, make: Callable[[Fetch], pa.Table]) -> None:
    """Never returns: nothing that the parent would do at its end may be done twice."""
    try:
        faulthandler.disable()  # its end is told by the ledger, not by a trace on the console
        _limit_memory()

        def fetch(numbers: Sequence[int]) -> Mapping[int, Any]:
            pipe.send(("fetch", [int(n) for n in numbers]))
            return _Announced(pipe.recv(), pipe)

        pipe.send(("row", make(fetch)))
    except BaseException as error:
        pipe.send(("error", error))
    finally:
        os._exit(0)


class _Announced(Mapping[int, Any]):
    """What was fetched; a sample is announced when it is looked up, which `make_row` does just before it decodes it."""

    def __init__(self, fetched: Mapping[int, Any], pipe: Connection) -> None:
        self._fetched, self._pipe = fetched, pipe

    def __getitem__(self, sample: int) -> Any:
        self._pipe.send(("decode", int(sample)))
        return self._fetched[sample]

    def __iter__(self) -> Iterator[int]:
        return iter(self._fetched)

    def __len__(self) -> int:
        return len(self._fetched)


def _reason(status: int, peak: int) -> ReadFailure:
    """What ended a child, by the status that it left and its peak of memory in bytes."""
    if not os.WIFSIGNALED(status):
        return ReadFailure(
            f"ended the process that decoded it (exit code {os.waitstatus_to_exitcode(status)})", Outcome.DECODE_CRASH
        )
    name = signal.Signals(os.WTERMSIG(status)).name
    grew = os.WTERMSIG(status) == signal.SIGKILL and peak - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > _GREW
    return ReadFailure(f"killed the process that decoded it ({name})", Outcome.DECODE_MEMORY if grew else Outcome.DECODE_CRASH)


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # no /proc here, or a lower limit already
        with open("/proc/self/statm", encoding="ascii") as statm:
            held = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
