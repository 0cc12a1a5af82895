"""What a method is: the only thing that differs between one objective and another. The training loop knows none by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from swav_platform.config import Config, ViewGroup
from swav_platform.errors import UsageError
from swav_platform.methods.comm import Comm


@dataclass(frozen=True)
class RowOutputs:
    """What the network makes of one row: V views of R positions, D dimensions, K prototypes."""

    row: int
    weight: Tensor  # [R]; 0 for a position without a readable image
    embeddings: Tensor  # [V, R, D], unit length
    scores: Tensor  # [V, R, K], cosines to the prototypes


@dataclass(frozen=True)
class StepOutputs:
    """This rank's rows of one step."""

    step: int
    rows: tuple[RowOutputs, ...]


Targets = Mapping[int, Tensor]
"""Row number -> what the views of that row are to predict (SwAV: codes [A, R, K] of the assignment views)."""


@dataclass(frozen=True)
class PositionOrderedState:
    """What a method carries from step to step besides weights: one entry a row, here of one rank or of all."""

    rows: Tensor  # int64 [n]
    tensors: dict[str, Tensor]  # [n, ...] each


class Method(Protocol):
    """One self-supervised objective over the rows of a step. Knows neither ranks nor Ray."""

    views: Mapping[str, ViewGroup]

    def modules(self, encoder: nn.Module) -> nn.Module:
        """The network to train: called with a list of [V_g * R, 3, H, W], gives embeddings and scores as in RowOutputs."""

    def frozen(self, step: int) -> frozenset[str]:
        """Names of parameters that `step` leaves as they are."""

    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        """No gradient; the only place with collectives."""

    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        """[R], per image, of one row."""

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
    """The method that `config.method.name` names. Raises UsageError for an unknown one."""
    from swav_platform.methods.swav import Swav  # methods import this file

    known = {"swav": Swav}
    if config.method.name not in known:
        raise UsageError(f"There is no method '{config.method.name}'; method.name must be one of {', '.join(known)}.")
    return known[config.method.name](config)
