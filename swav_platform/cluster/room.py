"""How many training workers and data tasks a cluster has room for.

Ray Train's own elasticity would take every CPU for workers, so that data tasks starve, count a dead node for a minute, and resize
without a checkpoint. The size of each group of workers is therefore chosen here, and Ray Train runs groups of a fixed size.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from swav_platform.config import Config

_ANSWER_SECONDS = 2.0


@dataclass(frozen=True)
class Node:
    """A node that accepts work. cpus and gpus: all of them, or the free ones."""

    cpus: int
    gpus: int = 0
    id: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """workers: each has a CPU, and a GPU on `cuda`. tasks: data tasks that have a CPU each."""

    workers: int
    tasks: int
    device: str = "cpu"


def choose(config: Config, nodes: Sequence[Node], device: str) -> Group | None:
    """The group that fits on `nodes`: as many workers as `train.workers` allows while the data tasks keep their CPUs. None if not even the
    fewest workers fit beside one data task.

    Data tasks get the CPUs of `data.tasks` if that leaves the fewest workers, and otherwise at least one. A range is not used up if fewer
    workers have the same most rows per worker, because a step takes as long then.
    """
    cpus, slots = sum(node.cpus for node in nodes), _slots(config, nodes, device)
    for data_cpus in range(config.data.tasks_of(1 if config.data.tasks == "auto" else cpus), 0, -1):
        workers = _largest(config, min(slots, cpus - data_cpus))
        if workers is not None:
            return Group(workers, _tasks(config, nodes, cpus - workers), device)
    return None


def lacking(config: Config, nodes: Sequence[Node], device: str) -> str:
    """What to wait for when `choose` returns None."""
    cpus, fewest = sum(node.cpus for node in nodes), config.fewest_workers
    if device == "cuda" and (gpus := _slots(config, nodes, device)) < fewest:
        return f"GPUs: {fewest} for workers, {gpus} on {_nodes(nodes)}"
    return f"CPUs: {fewest + 1} for {fewest} workers and data tasks, {cpus} on {_nodes(nodes)}"


def _nodes(nodes: Sequence[Node]) -> str:
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"


def _slots(config: Config, nodes: Sequence[Node], device: str) -> int:
    """Workers that the nodes can hold, without regard to data tasks."""
    if device == "cuda":
        return sum(min(node.gpus, node.cpus) for node in nodes)
    return len([n for n in nodes if n.cpus]) if config.train.workers == "auto" else sum(node.cpus for node in nodes)


def _largest(config: Config, room: int) -> int | None:
    """The best allowed number of workers that is at most `room`."""
    rows, allowed = config.rows_per_step, range(config.fewest_workers, min(config.most_workers, room) + 1)
    fitting = [n for n in allowed if config.allows(n)]
    return min((n for n in fitting if -(-rows // n) == -(-rows // fitting[-1])), default=None) if fitting else None


def _tasks(config: Config, nodes: Sequence[Node], free: int) -> int:
    """Data tasks on `free` CPUs, of which those of nodes with data.node_labels count."""
    labelled = sum(node.cpus for node in nodes if matches(node.labels, config.data.node_labels))
    return config.data.tasks_of(min(free, labelled))


def matches(labels: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether a node with `labels` may run data tasks. A wanted value that starts with ! is left to Ray."""
    return all(value[:1] == "!" or labels.get(key) == value for key, value in wanted.items())


def nodes_now(*, reachable: bool = False) -> list[Node]:
    """The nodes of the connected Ray that accept work, with all their CPUs and GPUs: not dead ones, nor those that are being drained.

    reachable: try whether each answers. Ray itself notices a lost node only after some 15 seconds, and would place workers there.
    """
    ray, draining = _ray(), _draining()
    return [
        Node(int(n["Resources"].get("CPU", 0)), int(n["Resources"].get("GPU", 0)), n["NodeID"], n["Labels"] or {})
        for n in ray.nodes()
        if n["Alive"]
        and n["NodeID"] not in draining
        and (not reachable or _answers(n["NodeManagerAddress"], n["NodeManagerPort"]))
    ]


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def free_nodes(nodes: Sequence[Node]) -> list[Node]:
    """`nodes` with their free CPUs and GPUs."""
    from ray._private import state

    each: Any = state.available_resources_per_node  # without annotations
    free = each()
    found = [(node, free.get(node.id, {})) for node in nodes]
    return [replace(node, cpus=int(r.get("CPU", 0)), gpus=int(r.get("GPU", 0))) for node, r in found]


def _draining() -> set[str]:
    """Nodes that will be gone soon. Ray Train's own watcher reads the same state; there is no public interface to it."""
    import ray._private.state as state

    return set(state.state.get_draining_nodes() or {})


def _ray() -> Any:
    """The module; its functions have no annotations."""
    import ray

    return ray
