"""The interface between a training objective and the training loop, which knows no objective by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from swav_platform.config import ViewGroup
from swav_platform.methods.comm import Comm


@dataclass(frozen=True)
class RowOutputs:
    """The network's outputs for one row: V views of R positions, D dimensions, K prototypes of all heads together."""

    row: int
    sample: Tensor  # int64 [R], sample number in the index
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
"""Row number -> what the views of that row predict. The type is the method's own (SwAV: codes [A, R, K])."""


@dataclass(frozen=True)
class PositionOrderedState:
    """State that a method carries between steps besides weights: one entry per row, of one rank or of all ranks."""

    rows: Tensor  # int64 [n]
    tensors: dict[str, Tensor]  # [n, ...] each
    shared: dict[str, Tensor] = field(default_factory=dict)  # identical on every rank


class Method(Protocol):
    """One self-supervised objective over the rows of a step. It reaches other ranks only through `comm`.

    Order of calls in a step: `start_epoch` if an epoch begins, `frozen`, the network's forward pass, `targets`, `loss` for each
    row, the optimiser, `after_step`. `modules`, `targets` and `loss` are required. The other defaults do nothing and apply to
    classes that name Method as a base; any class with all these members is a Method too.
    """

    views: Mapping[str, ViewGroup]

    @abstractmethod
    def modules(self, encoder: nn.Module) -> nn.Module:
        """Returns the network to train. It maps (list of [V_g * R, 3, H, W], R) to the last fields of RowOutputs, in order."""

    def frozen(self, step: int) -> frozenset[str]:
        """Names of the parameters that `step` does not update, the same on all ranks. If it names all, no backward pass runs."""
        return frozenset()

    def start_epoch(self, epoch: int, comm: Comm) -> None:
        """Called before the first step whose first row belongs to `epoch`, counted from 0."""

    @abstractmethod
    def targets(self, outputs: StepOutputs, comm: Comm) -> Targets:
        """Computes the targets of this rank's rows, without gradient. No other part of a step uses the method's collectives."""

    @abstractmethod
    def loss(self, outputs: RowOutputs, targets: Targets) -> Tensor:
        """Loss [R] of each image of one row.

        Its gradient must be the row's whole contribution to the step's gradient, including the effect of its embeddings on the
        losses of other rows.
        """

    def after_step(self, outputs: StepOutputs, comm: Comm) -> None:
        """Called after the optimiser has updated the weights."""

    def health_sums(self, outputs: StepOutputs, targets: Targets) -> Tensor:
        """[n]: this rank's input to `health`. The training step sums it over ranks."""
        return torch.zeros(0)

    def health(self, sums: Tensor, loss: float) -> dict[str, float]:
        """Metrics of a step, by metric name, from `health_sums` summed over ranks and the step's loss."""
        return {}

    def state(self) -> PositionOrderedState:
        """This rank's part of the state."""
        return PositionOrderedState(torch.zeros(0, dtype=torch.int64), {})

    def load_state(self, state: PositionOrderedState, comm: Comm) -> None:
        """Loads this rank's part of the state of all ranks. The number of ranks may differ from when it was saved."""
