"""The health metrics of a logged step, on rank 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swav_platform.config import Config
from swav_platform.methods.comm import Comm
from swav_platform.methods.method import Method, StepOutputs, Targets
from swav_platform.training.collectives import sum_together
from swav_platform.training.health.measures import measures
from swav_platform.training.health.probe import Layout, Seen, nearest, sample
from swav_platform.training.health.windows import Mixing, Usage


@dataclass(frozen=True)
class Gathered:
    """Sums over ranks of one logged step."""

    of_method: Tensor
    nearest: Tensor
    sample: Tensor
    layout: Layout


class Vitals:
    """Measures of a run's logged steps. Holds what spans several of them: which prototypes were used, how steps resemble each other."""

    def __init__(self, config: Config) -> None:
        self._rows_per_step, self._views, self._heads = config.rows_per_step, config.method.assign_views, config.method.heads
        self._usage, self._mixing = Usage(), Mixing()

    def gather(self, method: Method, outputs: StepOutputs, targets: Targets, seen: Seen, comm: Comm) -> Gathered:
        """Costs one collective, apart from that of the gradients: logged steps must not change how gradients are summed."""
        with torch.no_grad():
            whole, layout = sample(outputs, seen, self._rows_per_step)
            counts = nearest(outputs, self._views, self._heads).to(whole)
            of_method = method.health_sums(outputs, targets).to(whole)
            sum_together([of_method, counts, whole], comm)
        return Gathered(of_method, counts, whole, layout)

    def measure(self, gathered: Gathered) -> dict[str, float]:
        """By metric name."""
        small, embeddings, features = gathered.layout.parts(gathered.sample)
        return measures(embeddings, features) | self._usage.add(gathered.nearest.cpu()) | self._mixing.add(small)
