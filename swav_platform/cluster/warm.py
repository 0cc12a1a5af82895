"""Starts the processes of data tasks of a local Ray early, while those of the training workers start."""

from __future__ import annotations

import importlib

MODULES = ("swav_platform.cluster.segments", "swav_platform.rows.produce")


def warm(processes: int) -> None:
    """Returns at once. Ray keeps idle processes, so that data tasks find them with their modules imported."""
    import ray  # after `session` has set what Ray reads then

    task = ray.remote(num_cpus=0)(_import)
    for _ in range(processes):
        task.remote()


def _import() -> None:
    for name in MODULES:
        importlib.import_module(name)
