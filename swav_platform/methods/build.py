"""The list of methods, and how another one is imported by name."""

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


def build_method(config: Config) -> Method:
    """The method that `config.method.name` names: one of ours, or `module:attribute` of anybody's, called with `config`.

    Raises UsageError for an unknown one.
    """
    known: dict[str, Callable[[Config], Method]] = {
        "swav": Swav,
        "deepcluster": DeepCluster,
        "sela": Sela,
        "mean_shift": MeanShift,
        "simclr": SimClr,
    }
    name = config.method.name
    if ":" in name:
        return _imported(name)(config)
    if name not in known:
        raise UsageError(f"There is no method '{name}'; method.name must be one of {', '.join(known)}, or module:attribute.")
    return known[name](config)


def _imported(name: str) -> Callable[[Config], Method]:
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[Config], Method] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"method.name={name} can't be imported ({error}); write the module that holds the method and its class, and see that "
            f"the module is on PYTHONPATH on every machine."
        ) from error
    return found
