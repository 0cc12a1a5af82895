"""The watch over a group of workers: ranks tell what they do each second, and receive orders in return."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from swav_platform.cluster.stall import Beat, Seen
from swav_platform.training.notices import Notices

_BEAT_SECONDS = 1.0
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class Order:
    """stop: why to write a checkpoint and leave. stacks: send the stacks of all threads."""

    stop: str | None = None
    stacks: bool = False


class Watch:
    """Actor next to the driver. Knows one group of workers at a time, by its attempt."""

    def __init__(self) -> None:
        self._attempt = ""
        self._begin("")

    def _begin(self, attempt: str) -> None:
        self._attempt, self._order = attempt, Order()
        self._beats: dict[int, Beat] = {}
        self._heard: dict[int, float] = {}
        self._changed: dict[int, float] = {}
        self._stacks: dict[int, str] = {}

    def begin(self, attempt: str) -> None:
        self._begin(attempt)

    def beat(self, attempt: str, beat: Beat) -> Order:
        if attempt != self._attempt:  # a worker of an earlier group that is not gone yet
            return Order()
        now = time.monotonic()
        if self._beats.get(beat.rank) != beat:
            self._changed[beat.rank] = now
        self._beats[beat.rank], self._heard[beat.rank] = beat, now
        return self._order

    def seen(self) -> list[Seen]:
        now = time.monotonic()
        return [Seen(beat, now - self._heard[rank], now - self._changed[rank]) for rank, beat in sorted(self._beats.items())]

    def order(self, attempt: str, order: Order) -> None:
        if attempt == self._attempt:
            self._order = order

    def add_stacks(self, attempt: str, rank: int, text: str) -> None:
        if attempt == self._attempt:
            self._stacks[rank] = text

    def stacks(self) -> dict[int, str]:
        return self._stacks


def start_watch() -> Any:
    """The actor, on the node of the calling process, with which it ends."""
    return ray.remote(num_cpus=0)(Watch).options(scheduling_strategy=_on(ray.get_runtime_context().get_node_id())).remote()


def _on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


class Heart:
    """Thread of a rank that tells the watch what the rank does, and passes its orders on."""

    def __init__(self, watch: Any, attempt: str, rank: int, notices: Notices, collectives: Callable[[], int]) -> None:
        self._watch, self._attempt, self._rank = watch, attempt, rank
        self._notices, self._collectives = notices, collectives
        self._node, self._host = ray.get_runtime_context().get_node_id(), socket.gethostname()
        self._stopped, self._sent = threading.Event(), False
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(_BEAT_SECONDS):
            with suppress(Exception):  # the driver, and with it the watch, may be gone
                order = ray.get(self._watch.beat.remote(self._attempt, self._beat()), timeout=_ANSWER_SECONDS)
                if order.stop:
                    self._notices.request(order.stop)
                if order.stacks and not self._sent:
                    self._sent = True
                    self._watch.add_stacks.remote(self._attempt, self._rank, stacks_here())

    def _beat(self) -> Beat:
        now = self._notices.activity
        return Beat(self._rank, os.getpid(), self._node, self._host, now.step, now.doing, self._collectives())


def stacks_here() -> str:
    """The stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def write_stacks(folder: Path, stacks: dict[int, str], late: Sequence[Beat], workers: int) -> Path:
    """Writes a file for each rank and returns their folder. late: ranks that may be unable to answer."""
    into = folder / "stacks" / time.strftime("%Y%m%d-%H%M%S")
    into.mkdir(parents=True, exist_ok=True)
    for rank in range(workers):
        missing = "did not answer" + (": it kept the others waiting" if any(beat.rank == rank for beat in late) else "")
        (into / f"rank-{rank:05d}.txt").write_text(stacks.get(rank, f"worker {rank} {missing}\n"))
    return into


def kill(beats: Sequence[Beat]) -> None:
    """Kills the processes of ranks, on their nodes. Ray itself asks a process to exit, which a stopped one can't."""
    for beat in beats:
        ray.remote(num_cpus=0)(_kill).options(scheduling_strategy=_on(beat.node)).remote(beat.pid)


def _kill(pid: int) -> None:
    with suppress(OSError):
        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():  # and no other process that got the number since
            os.kill(pid, signal.SIGKILL)
