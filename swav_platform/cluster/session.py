"""Being connected to Ray: a local one of our own, or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

from swav_platform.config import Config
from swav_platform.errors import UsageError, UserError

# Read by Ray when it is imported or started: no usage statistics, no two-second waits for the controller, no training
# at a priority below every other program of the machine.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Room:
    """CPUs of the cluster, shared out: one for each training worker, the rest for data tasks."""

    cpus: int
    tasks: int


@contextlib.contextmanager
def connected(config: Config) -> Iterator[Room]:
    """Connects for the time of the block.

    Raises UserError when the address does not answer, UsageError when training workers would leave no CPU to
    data tasks (Ray Data would then wait for ever without a word).
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield _room(config, int(ray.cluster_resources().get("CPU", 0)))
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=max(os.cpu_count() or 1, config.train.workers + config.data.tasks),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"Ray at {address or 'this machine'} does not answer ({_first_line(error)}). Check RAY_ADDRESS and that "
            f"`ray start --head` runs there, or unset RAY_ADDRESS to start a local one."
        ) from error
    try:
        yield _room(config, int(ray.cluster_resources().get("CPU", 0)))
    finally:
        ray.shutdown()


def _room(config: Config, cpus: int) -> Room:
    free = cpus - config.train.workers
    if free < 1:
        raise UsageError(
            f"train.workers={config.train.workers} takes all {cpus} CPUs of the Ray cluster and leaves none to the data tasks that "
            f"make views, so the run would wait for ever. Take at most train.workers={max(1, cpus - 1)}, or add nodes."
        )
    return Room(cpus, min(config.data.tasks, free))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
