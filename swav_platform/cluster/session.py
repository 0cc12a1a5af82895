"""Being connected to Ray: a local one of our own, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from swav_platform.cluster.signals import own_signals
from swav_platform.config import Config
from swav_platform.errors import UsageError, UserError

# Read by Ray when it is imported or started: no usage statistics, no two-second waits for the controller, no training
# at a priority below every other program of the machine, no ending of data workers between two segments (a new one imports
# for two seconds).
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_worker_niceness": "0",
    "RAY_num_workers_soft_limit": "64",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
PATIENCE = 30.0  # seconds in which workers of a run that was stopped give back their CPUs
_ANSWERS_IN = 5.0  # seconds


class _Aside(io.TextIOBase):
    """Where Ray prints what its processes complain of while we are connected: standard output is for answers."""

    # A data task asks for less than half a CPU, so there are more processes than Ray thinks right.
    EXPECTED = "worker processes have been started"

    _begun = ""  # of a line

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        sys.stderr.write("".join(f"{line}\n" for line in lines if self.EXPECTED not in line))
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


@dataclass(frozen=True)
class Room:
    """CPUs of the cluster, shared out: one for each training worker, the rest for data tasks."""

    cpus: int
    tasks: int


def check_address() -> None:
    """Raises UserError when nobody listens at RAY_ADDRESS: Ray itself would try for minutes without a word."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # none, `auto`, `local`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_IN).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_answer(address, error) from None


@contextlib.contextmanager
def ray_at_hand(cpus: int | None = None) -> Iterator[bool]:
    """Connects for the time of the block, unless this process is connected, and says whether that Ray is a local one of our own.

    cpus: that a local one has; None, those of the machine. Raises UserError when Ray does not start or the address does not answer.
    """
    check_address()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS") or "local"  # else Ray joins a head that `ray start` left on this machine
    ours = address == "local"
    of_local: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False} if ours else {}
    try:
        with own_signals():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **of_local)
    except Exception as error:  # Ray raises bare ones, too
        with contextlib.suppress(Exception):
            ray.shutdown()  # what did start
        raise (_no_start(error) if ours else _no_answer(address, error)) from error
    try:
        with contextlib.redirect_stdout(_Aside()):
            yield ours
    finally:
        ray.shutdown()


@contextlib.contextmanager
def connected(config: Config) -> Iterator[Room]:
    """`ray_at_hand` with the CPUs that `config` asks for.

    Raises UserError also when others have taken the CPUs, UsageError when training workers would leave no CPU to data tasks (Ray Data
    would then wait for ever without a word).
    """
    with ray_at_hand(max(os.cpu_count() or 1, config.train.workers + config.data.tasks)) as ours:
        yield _room(config) if ours else _shared_room(config)


def _check_labels(config: Config) -> None:
    """Ray would wait for a node with these labels, for ever and without a word."""
    import ray

    wanted = config.data.node_labels
    nodes = [node["Labels"] for node in ray.nodes() if node["Alive"]]
    if not any(all(value[:1] == "!" or labels.get(key) == value for key, value in wanted.items()) for labels in nodes):
        labels = ", ".join(f"{key}={value}" for key, value in wanted.items())
        raise UsageError(
            f"No node of the Ray cluster has the labels {labels} of data.node_labels, so the run would wait for ever. Start nodes with "
            f"`ray start --labels={labels.replace(' ', '')}`, or take the setting away."
        )


def _room(config: Config) -> Room:
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 0))
    if config.data.node_labels:
        _check_labels(config)
    free = cpus - config.train.workers
    if free < 1:
        raise UsageError(
            f"train.workers={config.train.workers} takes all {cpus} CPUs of the Ray cluster and leaves none to the data tasks that "
            f"make views, so the run would wait for ever. Take at most train.workers={max(1, cpus - 1)}, or add nodes."
        )
    return Room(cpus, min(config.data.tasks, free))


def _shared_room(config: Config) -> Room:
    """The part of a cluster that others leave to us."""
    import ray

    room = _room(config)
    deadline = time.monotonic() + PATIENCE
    while (free := int(ray.available_resources().get("CPU", 0))) < config.train.workers + room.tasks:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if free <= config.train.workers:
        raise UserError(
            f"{free} of the {room.cpus} CPUs of the Ray cluster are free, and train.workers={config.train.workers} with their data tasks need "
            f"at least {config.train.workers + 1}. Wait until the other jobs have ended, or take fewer workers (train.workers)."
        )
    return Room(room.cpus, min(room.tasks, free - config.train.workers))


def _no_answer(address: str, error: BaseException) -> UserError:
    return UserError(
        f"Ray at {address} does not answer ({_first_line(error)}). Check RAY_ADDRESS and that `ray start --head` runs there, "
        f"or unset RAY_ADDRESS to start a local one."
    )


def _no_start(error: BaseException) -> UserError:
    return UserError(
        f"Ray did not start on this machine ({_first_line(error)}). If other programs keep it busy, try again when they are done, with --resume "
        f"for a run that was begun; or name a cluster with RAY_ADDRESS."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
