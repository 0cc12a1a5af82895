"""Makes rows in a child process, and finds the samples that kill it. This is the parent's side."""

from __future__ import annotations

import pickle
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from swav_platform.child_process import ChildProcess, Died, start_with_retries
from swav_platform.config import Config, ImagePolicy
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.data.order.plan import RowSpec
from swav_platform.data.samples import Killers, ReadFailure
from swav_platform.errors import UserError
from swav_platform.images.decoding.confined import NoDecoderError
from swav_platform.rows.fetch import Fetch, Replacement, without

DEATHS = 2
"""Children that a sample may kill before a replacement sample takes its place."""

SILENCE = 120.0
"""Seconds after which a child that does not answer is killed. Decoding one image takes two at most (`images/decoding`), unless
max_decode_seconds is raised."""

MEMORY = 4 * 2**30
"""Bytes of address space that a child may add to its own: more than any image within the default policy needs."""

_GREW = 2**30  # a child that SIGKILL ended after it grew by so much was killed for its memory
_UNEXPLAINED = 5
_CHILD = "swav_platform.rows.child"


class IsolatedMaker:
    """Makes rows in one child process, which is started on first use and kept warm. Belongs to one thread, except for `close`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        policy, usual = config.data.images, ImagePolicy()
        self._silence = SILENCE + 60 * max(0.0, policy.decode_seconds - usual.decode_seconds)
        self._memory = MEMORY + 3 * max(0, policy.decode_bytes - usual.decode_bytes)
        self._child: ChildProcess | None = None
        self._closed = False
        self._sample: int | None = None  # being decoded
        self._peak = 0  # bytes of memory, when decoding began

    def table(self, spec: RowSpec, fetch: Fetch, replacement: Replacement, killers: Killers) -> tuple[pa.Table, Killers]:
        """`to_table(make_row(…))`, and the samples that killed two children. Those in `killers` are not decoded.

        Which samples are found depends on the samples alone: if something else kills a child, that counts as one death of the
        sample being decoded. The child only decodes; this process reads the bytes. Raises RuntimeError if children repeatedly
        die before they decode anything, UserError if none can be started.
        """
        found: Killers = {}
        deaths: Counter[int | None] = Counter()
        while True:
            try:
                return self._attempt(spec, without(fetch, killers | found), replacement), found
            except Died as died:
                self._child = None
                why = _reason(died, self._peak, self._silence)
            if self._closed:
                raise RuntimeError("the maker of rows was closed")
            deaths[self._sample] += 1
            if self._sample is not None and deaths[self._sample] == DEATHS:
                found[self._sample] = why
            if deaths[None] == _UNEXPLAINED:
                raise RuntimeError(
                    f"The process that makes row {spec.row} died {_UNEXPLAINED} times before it decoded a sample: {why.detail}"
                )

    def close(self) -> None:
        """Kills the child. A call of `table` in another thread raises RuntimeError."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()

    def _attempt(self, spec: RowSpec, fetch: Fetch, replacement: Replacement) -> pa.Table:
        """Raises Died; then `_sample` is the sample that was being decoded, None if there was none."""
        self._sample, self._peak = None, 0
        child = self._child = self._child or self._start()
        try:
            child.send({}, pickle.dumps(spec), self._silence)
            while True:
                head, body = child.receive(self._silence)
                if head["is"] == "row":
                    return _table(body)
                if head["is"] == "decoding":
                    self._sample, self._peak = int(head["sample"]), int(head["peak"])
                else:
                    child.send({}, pickle.dumps(_answer(head, body, spec, fetch, replacement), 5), self._silence)
        except Died:
            raise
        except BaseException:
            self._child = None
            child.kill()  # it may wait for an answer that failed
            child.end()
            raise

    def _start(self) -> ChildProcess:
        try:
            child = start_with_retries(lambda: ChildProcess(_CHILD, (self._memory,), isolated=False))
        except OSError as error:
            raise UserError(
                f"No process that makes rows can be started on this machine ({error}). "
                "Check its limits and free memory with `ulimit -a`, `free` and `swav doctor`."
            ) from None
        child.send({}, pickle.dumps(self._config), self._silence)
        return child


def _answer(head: Mapping[str, Any], body: np.ndarray, spec: RowSpec, fetch: Fetch, replacement: Replacement) -> object:
    match head["is"]:
        case "fetch":
            return dict(fetch(head["samples"]))
        case "replacement":
            return replacement(head["position"], head["attempt"])
        case "no decoder":
            raise NoDecoderError(body.tobytes().decode())
        case _:
            raise RuntimeError(f"Making row {spec.row} failed: {body.tobytes().decode()}")


def _table(body: np.ndarray) -> pa.Table:
    with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
        return reader.read_all()


def _reason(died: Died, peak: int, silence: float) -> ReadFailure:
    """Why a sample is not decoded. peak: bytes of memory that the child had used before the sample."""
    if died.late:
        detail = f"did not decode within {silence:g} s, so the decoding process was killed"
        return ReadFailure(detail, Outcome.DECODE_CRASH)
    if died.code >= 0:
        return ReadFailure(f"ended the process that decoded it (exit code {died.code})", Outcome.DECODE_CRASH)
    grew = died.code == -signal.SIGKILL and died.peak - peak > _GREW
    name = signal.Signals(-died.code).name
    return ReadFailure(f"killed the process that decoded it ({name})", Outcome.DECODE_MEMORY if grew else Outcome.DECODE_CRASH)


def killers_among(events: Iterable[Event]) -> Killers:
    """The samples that a ledger knows to kill their decoder."""
    deadly = (Outcome.DECODE_CRASH, Outcome.DECODE_MEMORY)
    return {event.sample: ReadFailure(event.detail, event.outcome) for event in events if event.outcome in deadly}
