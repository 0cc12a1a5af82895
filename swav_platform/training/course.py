"""The steps of a run as a function of their number: what the loop and a replay both do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swav_platform.config import Config
from swav_platform.methods.comm import Comm
from swav_platform.training.counters import to_sum
from swav_platform.training.health.vitals import Vitals
from swav_platform.training.learner import Learner
from swav_platform.training.optimisation.schedules import learning_rate
from swav_platform.training.passes import Prepare
from swav_platform.training.step import StepReport, train_step

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row


@dataclass(frozen=True)
class Course:
    """A learner on its way through a run over an index of `samples` samples."""

    config: Config
    samples: int
    learner: Learner
    comm: Comm
    prepare: Prepare

    @property
    def total(self) -> int:
        """Number of steps."""
        return self.config.steps(self.samples)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(step, self.total, self.config.train.optimiser, self.config.train.batch)

    def begin_epoch(self, step: int) -> None:
        """Does what precedes the first step of an epoch, if `step` is one."""
        if (epoch := self.config.epoch(step, self.samples)) != self.config.epoch(step - 1, self.samples):
            self.learner.method.start_epoch(epoch, self.comm)

    def make(self, step: int, own: Sequence[Row], vitals: Vitals | None = None, numbers: Sequence[float] = ()) -> StepReport:
        """Makes a step from this rank's rows of it. Steps must be made in order. Raises what `train_step` raises.

        numbers: more numbers to sum over ranks, before those of the rows' costs.
        """
        train = self.config.train
        self.begin_epoch(step)
        return train_step(
            step,
            own,
            self.learner,
            self.comm,
            self.prepare,
            batch=train.batch,
            lr=self.lr(step),
            precision=train.precision,
            accumulate=train.accumulate,
            together=self.config.model.normalisation == "step",
            clip=train.clip,
            extra=[*numbers, *to_sum(own)],
            vitals=vitals,
        )
