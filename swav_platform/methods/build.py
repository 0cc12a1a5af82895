"""The available methods, by name, and the import of external ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from swav_platform.config import Config
from swav_platform.errors import UsageError
from swav_platform.methods.deepcluster import DeepCluster
from swav_platform.methods.mean_shift import MeanShift
from swav_platform.methods.method import Method
from swav_platform.methods.sela import Sela
from swav_platform.methods.simclr import SimClr
from swav_platform.methods.swav import Swav

_METHODS: dict[str, Callable[[Config], Method]] = {
    "swav": Swav,
    "deepcluster": DeepCluster,
    "sela": Sela,
    "mean_shift": MeanShift,
    "simclr": SimClr,
}


def build_method(config: Config) -> Method:
    """Calls the method that `config.method.name` names with `config`: a built-in one, or `module:attribute`.

    Raises UsageError if the name is unknown or cannot be imported.
    """
    name = config.method.name
    if ":" in name:
        return _imported(name)(config)
    if name not in _METHODS:
        raise UsageError(f"unknown method '{name}'; set method.name to one of {', '.join(_METHODS)}, or to module:attribute.")
    return _METHODS[name](config)


def _imported(name: str) -> Callable[[Config], Method]:
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[Config], Method] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"method.name={name} can't be imported ({error}). Write it as module:class, and put the module on PYTHONPATH on "
            f"every machine."
        ) from error
    return found
