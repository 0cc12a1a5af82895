"""Connects to Ray: a local cluster of this process, or the one at RAY_ADDRESS."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from swav_platform.cluster import room
from swav_platform.cluster.room import Group
from swav_platform.cluster.signals import own_signals
from swav_platform.config import Config
from swav_platform.errors import UsageError, UserError

# Ray reads these when it is imported or started. In order: no usage statistics; poll training workers every 0.5 s instead of 2 s, and
# nodes that will be gone soon every second; give up on nodes that can't hold a group after 15 s, because the next group is smaller;
# run workers at normal priority; keep idle data workers between segments, because a new one needs two seconds of imports;
# leave CUDA_VISIBLE_DEVICES of tasks without a GPU unchanged.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_worker_niceness": "0",
    "RAY_num_workers_soft_limit": "64",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
RELEASE_TIMEOUT = 30.0  # seconds to wait until workers of a stopped run have released their CPUs
_CONNECT_TIMEOUT = 5.0  # seconds


class _StderrWriter(io.TextIOBase):
    """Sends the messages of Ray's processes, which Ray prints to stdout, to stderr: stdout is for results."""

    # Data tasks request less than half a CPU, so there are more processes than Ray expects.
    EXPECTED = "worker processes have been started"

    _partial = ""  # line

    def write(self, text: str) -> int:
        *lines, self._partial = (self._partial + text).split("\n")
        sys.stderr.write("".join(f"{line}\n" for line in lines if self.EXPECTED not in line))
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def check_address() -> None:
    """Raises UserError when nothing listens at RAY_ADDRESS. Ray itself would retry for minutes without a message."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # unset, `auto` or `local`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address, error) from None


@contextlib.contextmanager
def ray_session(cpus: int | None = None) -> Iterator[bool]:
    """Connects to Ray inside the block, unless this process is connected already. Yields whether it started a local Ray.

    cpus: of a local Ray; None for those of the machine. Raises UserError when Ray does not start or the address does not answer.
    """
    check_address()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield False
        return
    address = os.environ.get("RAY_ADDRESS") or "local"  # without "local", Ray joins a head that `ray start` left on this machine
    local = address == "local"
    options: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False} if local else {}
    with contextlib.redirect_stdout(_StderrWriter()):  # also around shutdown, which prints messages that Ray held back
        try:
            with own_signals():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray also raises bare Exception
            with contextlib.suppress(Exception):
                ray.shutdown()  # stops the parts that did start
            raise (_not_started(error) if local else _unreachable(address, error)) from error
        try:
            yield local
        finally:
            ray.shutdown()


def cluster_resources() -> dict[str, float]:
    """All resources of the connected Ray, by name: CPU, GPU, object_store_memory (bytes) …"""
    return dict(_untyped_ray().cluster_resources())


@contextlib.contextmanager
def connected(config: Config) -> Iterator[tuple[Group, bool]]:
    """`ray_session` with the CPUs that `config` needs. Yields the first group of workers, and whether the Ray is this process's own.

    Also raises UserError when other jobs hold the CPUs, and UsageError when there are too few GPUs, or when training workers would leave
    no CPU for data tasks: Ray Data would then wait without limit and without a message.
    """
    tasks = 1 if config.data.tasks == "auto" else config.data.tasks
    with ray_session(max(os.cpu_count() or 1, config.fewest_workers + tasks)) as local:
        yield _first_group(config, local), local


def _untyped_ray() -> Any:
    """The module; its functions have no annotations."""
    import ray

    return ray


def _first_group(config: Config, local: bool) -> Group:
    from swav_platform.training.device import chosen

    nodes = room.nodes_now()
    _check_labels(config, nodes)
    place = "this machine" if local else "the Ray cluster"
    device = chosen(config.train.device, sum(node.gpus for node in nodes), config.fewest_workers, place)
    whole, cpus = room.choose(config, nodes, device), sum(node.cpus for node in nodes)
    if whole is None:
        raise UsageError(
            f"train.workers={config.fewest_workers} uses all {cpus} CPUs of {place} and leaves none for data tasks. "
            f"Set train.workers={max(1, cpus - 1)} or fewer, or add nodes."
        )
    return whole if local else _free_group(config, nodes, whole)


def _check_labels(config: Config, nodes: Sequence[room.Node]) -> None:
    """Raises UsageError when no node matches data.node_labels: Ray would wait for one without limit and without a message."""
    wanted = config.data.node_labels
    if not any(room.matches(node.labels, wanted) for node in nodes):
        labels = ",".join(f"{key}={value}" for key, value in wanted.items())
        raise UsageError(
            f"No node of the Ray cluster has the labels of data.node_labels ({labels}), so the run would wait forever. "
            f"Start nodes with `ray start --labels={labels}`, or remove the setting."
        )


def _free_group(config: Config, nodes: Sequence[room.Node], whole: Group) -> Group:
    """The group that fits beside other jobs. Waits a little for workers of a stopped run, which release their CPUs late."""
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while (found := room.choose(config, free := room.free_nodes(nodes), whole.device)) != whole:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if found is None:
        raise UserError(
            f"The Ray cluster has too few free CPUs or GPUs, because other jobs hold them: the run lacks {room.lacking(config, free, whole.device)}. "
            f"Wait for other jobs to finish, or lower train.workers."
        )
    return found


def _unreachable(address: str, error: BaseException) -> UserError:
    return UserError(
        f"Ray at {address} does not answer ({_first_line(error)}). Check RAY_ADDRESS and that `ray start --head` runs there, "
        f"or unset RAY_ADDRESS to start a local Ray."
    )


def _not_started(error: BaseException) -> UserError:
    return UserError(
        f"Ray did not start on this machine ({_first_line(error)}). If the machine is busy, try again later, with --resume for "
        f"an existing run; or set RAY_ADDRESS to use a cluster."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
