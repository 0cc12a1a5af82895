"""Thread of the driver: explains waits, replaces workers that hang, and ends a group when another size fits the cluster better."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from swav_platform.cluster import room
from swav_platform.cluster.report import Report
from swav_platform.cluster.room import Group, Node
from swav_platform.cluster.stall import EXPLAIN_SECONDS, Stall, stall
from swav_platform.cluster.watch import Order, kill, write_stacks
from swav_platform.config import Config

LOOK_SECONDS = 1.0
OBEY_SECONDS, STARVED_SECONDS = 30.0, 5.0
"""Time that ranks have to follow an order to stop; the latter where data tasks have no CPU. Ranks without rows can't follow, because they
only stop after a step."""

_AGAIN_SECONDS = 600.0
_STACKS_SECONDS = 4.0

log = logging.getLogger("swav")


@dataclass(frozen=True)
class Tried:
    """A change of the group's size that was tried on these nodes."""

    nodes: frozenset[str]
    workers: int
    at: float


def better(config: Config, group: Group, nodes: list[Node], free: list[Node]) -> str | None:
    """Why another group should take the place of `group`; None if none should. free: `nodes` with what is free now."""
    best, cpus = room.choose(config, nodes, group.device), sum(node.cpus for node in nodes)
    if best is None:
        return None
    if cpus - group.workers < group.tasks:
        return f"{cpus} CPUs are left for {group.workers} workers and {group.tasks} data tasks"
    spare = sum(node.cpus for node in free) + group.tasks
    spare = min(spare, sum(node.gpus for node in free)) if group.device == "cuda" else spare
    if best.workers > group.workers and spare >= best.workers - group.workers + (group.device == "cpu"):
        return f"there is room for {best.workers} workers"
    return None


class Monitor:
    """Watches one group inside a `with` block. why: for what reason it killed ranks; None if it did not. released: such a kill made room
    for another group and is no failure."""

    def __init__(
        self, watch: Any, attempt: str, config: Config, group: Group, folder: Path, report: Report, tried: Tried | None
    ) -> None:
        self._watch, self._attempt, self._config, self._group = watch, attempt, config, group
        self._folder, self._report = folder, report
        self._ended, self._began = threading.Event(), time.monotonic()
        self._ordered: float | None = None
        self._named = self._killed = False
        self.tried, self.released = tried, False
        self.why: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Monitor:
        ray.get(self._watch.begin.remote(self._attempt))
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join(timeout=OBEY_SECONDS)

    def request(self, why: str) -> None:
        """Asks the ranks to write a checkpoint and leave."""
        self._ordered = self._ordered or time.monotonic()
        self._watch.order.remote(self._attempt, Order(stop=why))

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:  # Ray may be busy or going away; the training call itself reports that
                log.debug("the watch over the workers failed: %s", error)

    def _look(self) -> None:
        seen = ray.get(self._watch.seen.remote(), timeout=10)
        found = stall(seen, self._group.workers, self._config.train.hang_timeout)
        if not seen and time.monotonic() - self._began > EXPLAIN_SECONDS:
            found = Stall(f"{self._group.workers} workers to start")
        nodes = room.nodes_now()
        self._explain(found, nodes)
        if seen:
            self._report.step(max(s.beat.step for s in seen))
        if found and found.named and not self._named:
            self._name(found)
        if found and found.restart and not self._killed:
            self._kill(found.late, found.waiting_for)
        elif len(seen) == self._group.workers and self._ordered is None:
            self._resize(nodes)
        elif self._disobeyed(starved=sum(node.cpus for node in nodes) <= self._group.workers) and any(
            s.beat.doing == "rows" for s in seen
        ):
            self.released = True
            self._kill([s.beat for s in seen], "workers without rows make room")

    def _disobeyed(self, starved: bool) -> bool:
        patience = STARVED_SECONDS if starved else OBEY_SECONDS
        return self._ordered is not None and time.monotonic() - self._ordered > patience and not self._killed

    def _explain(self, found: Stall | None, nodes: list[Node]) -> None:
        if found is None:
            self._report.waiting(None)
        elif sum(node.cpus for node in nodes) <= self._group.workers and not found.named:
            self._report.waiting(room.lacking(self._config, nodes, self._group.device))
        else:
            self._report.waiting(found.waiting_for)

    def _name(self, found: Stall) -> None:
        """Writes the stacks of all ranks."""
        self._named = True
        self._watch.order.remote(self._attempt, Order(stacks=True))
        time.sleep(_STACKS_SECONDS)
        stacks = ray.get(self._watch.stacks.remote(), timeout=10)
        where = write_stacks(self._folder, stacks, found.late, self._group.workers)
        log.warning(f"{found.waiting_for[:1].upper()}{found.waiting_for[1:]}. The stacks of all workers are in {where}.")

    def _kill(self, late: Any, why: str) -> None:
        self._killed, self.why = True, why
        kill(late)

    def _resize(self, nodes: list[Node]) -> None:
        why = better(self._config, self._group, nodes, room.free_nodes(nodes))
        here, now = frozenset(node.id for node in nodes), time.monotonic()
        if why is None:
            return
        if (
            self.tried
            and (self.tried.nodes, self.tried.workers) == (here, self._group.workers)
            and now - self.tried.at < _AGAIN_SECONDS
        ):
            return  # other jobs took the room
        self.tried = Tried(here, self._group.workers, now)
        self.request(why)
