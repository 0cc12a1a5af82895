"""The health metrics of a logged step, on rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swav_platform.config import Config
from swav_platform.methods.comm import Comm
from swav_platform.methods.method import Method, StepOutputs, Targets
from swav_platform.training.collectives import sum_together
from swav_platform.training.health.measures import measures
from swav_platform.training.health.online_knn import OnlineKnn, tags
from swav_platform.training.health.probe import Layout, Seen, nearest, sample
from swav_platform.training.health.windows import Mixing, Usage

if TYPE_CHECKING:
    from swav_platform.rows.layout import Row


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
        self._knn = OnlineKnn() if config.train.online_knn == "folder" else None

    def gather(
        self, method: Method, rows: Sequence[Row], outputs: StepOutputs, targets: Targets, seen: Seen, comm: Comm
    ) -> Gathered:
        """Costs one collective, apart from that of the gradients: logged steps must not change how gradients are summed."""
        with torch.no_grad():
            whole, layout = sample(outputs, seen, self._rows_per_step, [] if self._knn is None else [tags(row) for row in rows])
            counts = nearest(outputs, self._views, self._heads).to(whole)
            of_method = method.health_sums(outputs, targets).to(whole)
            sum_together([of_method, counts, whole], comm)
        return Gathered(of_method, counts, whole, layout)

    def measure(self, gathered: Gathered) -> dict[str, float]:
        """By metric name."""
        small, embeddings, features, tagged = gathered.layout.parts(gathered.sample)
        knn = self._knn.add(features, tagged) if self._knn is not None and features.shape[1] else {}
        return measures(embeddings, features) | self._usage.add(gathered.nearest.cpu()) | self._mixing.add(small) | knn
