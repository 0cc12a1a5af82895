"""State and loss shared by the methods that assign a whole epoch at once (DeepCluster, SeLa)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from swav_platform.config import Config
from swav_platform.errors import UserError
from swav_platform.methods.comm import Comm, in_position_order
from swav_platform.methods.method import PositionOrderedState, RowOutputs, StepOutputs

IGNORED = -100


class Entry(NamedTuple):
    """One row: unit features of the assignment views, sample numbers, weights."""

    features: Tensor  # [A, R, D]
    sample: Tensor  # int64 [R]
    weight: Tensor  # [R]


class Labels(NamedTuple):
    """Targets of the images of one row."""

    labels: Tensor  # int64 [H, R], by head; IGNORED for an image without a label
    scale: float  # images in the step / images in it that have a label, so that the loss is a mean over the latter


class Memory:
    """Features since the last `assign`, each rank's own rows, and the assignments made then, identical on every rank.

    Unreadable images have no assignment, and neither have images that no completed epoch contained.
    """

    def __init__(self, config: Config) -> None:
        self.batch, self.rows_per_step = config.train.batch, config.rows_per_step
        self.views = list(config.method.assign_views)
        self.shape = (len(self.views), config.data.row_size, config.model.projection_dim)
        self.rows: dict[int, Entry] = {}
        self.span = range(0)  # rows of all ranks since the last assignment
        self.labels: Tensor | None = None  # int64 [H, n] by sample number

    def add(self, outputs: StepOutputs) -> None:
        """Adds the features of a step."""
        for row in outputs.rows:
            self.rows[row.row] = Entry(row.embeddings[self.views].detach(), row.sample, row.weight)
        first = outputs.step * self.rows_per_step
        self.span = range(self.span.start if self.span else first, first + self.rows_per_step)

    def contents(self, comm: Comm) -> tuple[Tensor, Tensor]:
        """This rank's share in position order: features [A, m, D] and weights [m].

        Costs one comm.sum. Raises UserError on all ranks if no image of the epoch was readable.
        """
        kept = [self.rows[k] for k in sorted(self.rows)]
        features, weight = torch.cat([e.features for e in kept], dim=1), torch.cat([e.weight for e in kept])
        if not comm.sum(weight.sum()[None]).item():
            raise UserError(
                "No image of the last epoch could be read, so it has no features to assign. `swav ledger RUN` lists the reasons."
            )
        return features, weight

    def assign(self, labels: Tensor, comm: Comm) -> None:
        """Stores labels int64 [H, m] of `contents` as the assignments and clears the features.

        A sample seen twice keeps the later label.
        """
        numbers = sorted(self.rows)
        parts = zip(numbers, labels.split(self.shape[1], dim=1), strict=True)
        own = {k: torch.stack([self.rows[k].sample, (self.rows[k].weight > 0).long(), *part], dim=1) for k, part in parts}
        whole = in_position_order(own, self.span, comm).flatten(0, 1)  # [n, 2 + H]: sample, readable, labels
        whole = whole[whole[:, 1] > 0]
        sample, places = whole[:, 0], torch.arange(len(whole), device=whole.device)
        latest = torch.zeros(int(sample.max()) + 1, dtype=torch.int64, device=whole.device)
        latest.scatter_reduce_(0, sample, places, "amax")
        self.labels = torch.full((len(labels), len(latest)), IGNORED, device=whole.device)
        self.labels[:, sample] = whole[latest[sample], 2:].T
        self.rows, self.span = {}, range(0)

    def look_up(self, outputs: StepOutputs, heads: int, comm: Comm) -> Mapping[int, Labels]:
        """Labels of this rank's rows. Costs one comm.sum."""
        found = {row.row: self._labels(row.sample, heads) for row in outputs.rows}
        weights = [(row.weight * (found[row.row][0] != IGNORED)).sum() for row in outputs.rows]
        labelled = comm.sum(torch.stack(weights).sum()[None]).item()
        return {k: Labels(labels, self.batch / max(labelled, 1e-30)) for k, labels in found.items()}

    def _labels(self, sample: Tensor, heads: int) -> Tensor:
        if self.labels is None:
            return torch.full((heads, len(sample)), IGNORED, device=sample.device)
        known = sample < self.labels.shape[1]
        return torch.where(known, self.labels.to(sample.device)[:, sample.clamp_max(self.labels.shape[1] - 1)], IGNORED)

    def state(self) -> PositionOrderedState:
        """This rank's rows, and the assignments that all ranks share."""
        shared = {} if self.labels is None else {"labels": self.labels}
        numbers = sorted(self.rows)
        if not numbers:
            nothing = torch.zeros(0, self.shape[1])
            empty = Entry(torch.zeros(0, *self.shape), nothing.long(), nothing)
            return PositionOrderedState(torch.zeros(0, dtype=torch.int64), empty._asdict(), shared)
        columns = Entry(*(torch.stack(column) for column in zip(*(self.rows[k] for k in numbers), strict=True)))
        return PositionOrderedState(torch.tensor(numbers), columns._asdict(), shared)

    def load(self, state: PositionOrderedState, comm: Comm, device: torch.device) -> None:
        """Loads this rank's share of the rows of all ranks."""
        columns = zip(state.rows.tolist(), *(state.tensors[name].to(device) for name in Entry._fields), strict=True)
        self.rows = {k: Entry(*rest) for k, *rest in columns if k % comm.size == comm.rank}
        numbers = state.rows.tolist()
        self.span = range(min(numbers), max(numbers) + 1) if numbers else range(0)
        self.labels = state.shared["labels"].to(device) if "labels" in state.shared else None


def assignment_loss(outputs: RowOutputs, target: Labels, heads: Sequence[int], temperature: float) -> Tensor:
    """[R]: cross-entropy of every view's scores against the image's label, averaged over views and then over heads.

    Images without a label have loss 0. The others are scaled so that the step's mean is over them alone.
    """
    per_head = []
    for scores, labels in zip(outputs.scores.split(list(heads), dim=-1), target.labels, strict=True):
        views = labels.expand(len(scores), -1).flatten()
        loss = F.cross_entropy(scores.flatten(0, 1) / temperature, views, ignore_index=IGNORED, reduction="none")
        per_head.append(loss.view(len(scores), -1).mean(0))
    return torch.stack(per_head).mean(0) * target.scale
