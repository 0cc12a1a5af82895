"""What a method is: the only thing that differs between one objective and another. The training loop knows none by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.errors import UsageError
from swav_platform.methods.comm import Comm


@dataclass(frozen=True)
class RowOutputs:
    """What the network makes of one row: V views of R positions, D dimensions, K prototypes of all heads together."""

    row: int
    sample: Tensor  # int64 [R], number in the index of what is seen
    weight: Tensor  # [R]; 0 for a position without a readable image
    embeddings: Tensor  # [V, R, D], unit length
    scores: Tensor  # [V, R, K], cosines to the prototypes, head after head; K = 0 without prototypes
    momentum: Tensor | None = None  # [A, R, D], unit length: the momentum network's embeddings of the assignment views


@dataclass(frozen=True)
class StepOutputs:
    """This rank's rows of one step."""

    step: int
    rows: tuple[RowOutputs, ...]


Targets = Mapping[int, Any]
"""Row number -> what the views of that row are to predict: a method's own (SwAV: codes [A, R, K] of the assignment views)."""


@dataclass(frozen=True)
class PositionOrderedState:
    """What a method carries from step to step besides weights: one entry a row, here of one rank or of all."""

    rows: Tensor  # int64 [n]
    tensors: dict[str, Tensor]  # [n, ...] each
    shared: dict[str, Tensor] = field(default_factory=dict)  # what every rank holds whole


class Method(Protocol):
    """One self-supervised objective over the rows of a step. Knows neither ranks nor Ray.

    A step goes: `start_epoch` where one begins, `frozen`, the network's forward pass, `targets`, `loss` row by row, the optimiser,
    `after_step`. Where ranks meet, it is in a method with a `comm`.
    """

    views: Mapping[str, ViewGroup]

    def modules(self, encoder: nn.Module) -> nn.Module:
        """The network to train: called with a list of [V_g * R, 3, H, W] and R, gives the last fields of RowOutputs in order."""

    def frozen(self, step: int) -> frozenset[str]:
        """Names of parameters that `step` leaves as they are, the same on all ranks. With all of them the step goes forward only."""

    def start_epoch(self, epoch: int, comm: Comm) -> None:
        """Called before the first step whose first row is of `epoch`; the first epoch is 0."""

    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        """No gradient; the only place in a step with collectives."""

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        """[R], per image, of one row. Its gradient is all that the row adds to the step's: also what its embeddings do to
        other rows' losses."""

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
        """Called when the optimiser has moved the weights."""

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        """[n]: what `health` needs of this rank, to be summed over ranks."""

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        """Metrics of a step from the sums over all ranks, under the names that tracking uses."""

    def state(self) -> PositionOrderedState:
        """This rank's part."""

    def load_state(self, state: PositionOrderedState, comm: Comm) -> None:
        """Takes this rank's part of the state of all ranks, however many wrote it."""


def build_method(config: Config) -> Method:
    """The method that `config.method.name` names: one of ours, or `module:attribute` of anybody's, called with `config`.

    Raises UsageError for an unknown one.
    """
    from swav_platform.methods.deepcluster import DeepCluster  # methods import this file
    from swav_platform.methods.mean_shift import MeanShift
    from swav_platform.methods.sela import Sela
    from swav_platform.methods.simclr import SimClr
    from swav_platform.methods.swav import Swav

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
