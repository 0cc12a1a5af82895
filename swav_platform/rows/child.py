"""The process that makes rows for its parent, so that an image which kills its decoder takes only this process with it.

The first message is the configuration, each further one the plan of a row. While it makes a row, this process asks its parent for
bytes and replacement samples, and tells it which sample it decodes next. Rows go back as Arrow tables.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from swav_platform.child_process import ParentPipe
from swav_platform.config import Config
from swav_platform.data.order.plan import RowSpec
from swav_platform.images.decoding.confined import NoDecoderError
from swav_platform.rows.make import make_row
from swav_platform.rows.table import to_table


def main(memory: int) -> None:
    """Serves rows until the input ends. memory: bytes of address space that making them may add."""
    outgoing = os.dup(1)
    os.dup2(2, 1)  # whatever prints must not write into the pipe
    parent = ParentPipe(outgoing=outgoing)
    _limit(memory)
    parent.ready()
    config: Config | None = None
    while message := parent.receive():
        content = pickle.loads(message[1])
        if config is None:
            config = content
        else:
            _serve(parent, content, config)


def _serve(parent: ParentPipe, spec: RowSpec, config: Config) -> None:
    def fetch(numbers: Sequence[int]) -> Mapping[int, Any]:
        return _Announced(_ask(parent, {"is": "fetch", "samples": [int(n) for n in numbers]}), parent)

    def replacement(position: int, attempt: int) -> int:
        return int(_ask(parent, {"is": "replacement", "position": position, "attempt": attempt}))

    try:
        table = to_table(make_row(spec, fetch, replacement, config))
    except NoDecoderError as error:
        parent.send({"is": "no decoder"}, str(error).encode())
    except Exception:
        parent.send({"is": "error"}, traceback.format_exc().encode())
    else:
        parent.send({"is": "row"}, _serialised(table))


def _ask(parent: ParentPipe, question: Mapping[str, Any]) -> Any:
    parent.send(question)
    message = parent.receive()
    if message is None:  # the parent has ended
        raise SystemExit
    return pickle.loads(message[1])


def _serialised(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


class _Announced(Mapping[int, Any]):
    """Fetched samples. Looking a sample up announces it, and `make_row` does that just before it decodes it."""

    def __init__(self, fetched: Mapping[int, Any], parent: ParentPipe) -> None:
        self._fetched, self._parent = fetched, parent

    def __getitem__(self, sample: int) -> Any:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._parent.send({"is": "decoding", "sample": int(sample), "peak": peak})
        return self._fetched[sample]

    def __iter__(self) -> Iterator[int]:
        return iter(self._fetched)

    def __len__(self) -> int:
        return len(self._fetched)


def _limit(memory: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # no /proc here, or a lower limit already
        with open("/proc/self/statm", encoding="ascii") as statm:
            held = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
