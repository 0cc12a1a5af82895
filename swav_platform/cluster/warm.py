"""Starts the processes of data tasks of a local Ray early, while those of the training workers start."""

from __future__ import annotations

import importlib

TASKS = ("swav_platform.cluster.segments", "swav_platform.rows.produce")
ACTORS = ("ray.data",)
_ACTORS = 2  # one schedules a dataset, one splits it


def warm(tasks: int) -> None:
    """Returns at once. Ray keeps idle processes, so that data tasks and the actors of a dataset find them with their modules imported."""
    import ray  # after `session` has set what Ray reads then

    task = ray.remote(num_cpus=0)(_import)
    for modules in [TASKS] * tasks + [ACTORS] * _ACTORS:
        task.remote(modules)


def _import(modules: tuple[str, ...]) -> None:
    for name in modules:
        importlib.import_module(name)
