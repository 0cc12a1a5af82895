"""What a method is: the only thing that differs between one objective and another. The training loop knows none by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from swav_platform.config import ViewGroup
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
