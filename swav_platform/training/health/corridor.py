"""Where the loss of a healthy run is: below that of a network that predicts nothing, from a certain step on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swav_platform.config import Config
from swav_platform.training.optimisation.schedules import learning_rate

EARLY, LATE = 0.1, 0.4
"""Shares of the run's learning (sum of learning rates). After the first, a run is at fault that has learned nothing by any measure:
published recipes have left their warm-up by then. After the second, one whose loss alone shows nothing."""
FEWEST_STEPS = 20  # no network learns anything in fewer
_POINTS = 500


@dataclass(frozen=True)
class Corridor:
    """first: step before which weights or prototypes are frozen. whole: sum of the learning rates from then on."""

    whole: float
    first: int

    @classmethod
    def of(cls, config: Config, samples: int | None, total: int) -> Corridor:
        """samples: size of the index, if known; methods that assign a whole epoch learn nothing in their first one."""
        first = min(config.method.freeze_prototypes, total // 10) if config.method.learn_prototypes else 0
        if in_epochs(config):
            first = max(first, epoch_steps(config, samples))
        first = max(first, FEWEST_STEPS)
        stride = max(1, total // _POINTS)
        rates = [learning_rate(step, total, config.train.optimiser, config.train.batch) for step in range(first, total, stride)]
        return cls(math.fsum(rates) * stride, first)


def in_epochs(config: Config) -> bool:
    """Whether the method assigns a whole epoch at once, and trains nothing in its first one."""
    return config.method.name in ("deepcluster", "sela")


def epoch_steps(config: Config, samples: int | None) -> int:
    """Steps of the first epoch."""
    size = config.data.samples_per_epoch or samples
    return 0 if size is None else math.ceil(size / config.train.batch)


def forced_entropy(config: Config) -> float:
    """Smallest entropy of a code, over ln K: balanced over n samples, a code covers at least K / n prototypes (largest head)."""
    most = max(config.method.heads)
    together = config.train.batch + config.method.queue_length // config.train.batch * config.train.batch
    return max(0.0, math.log(most / together)) / math.log(most)


def sharpest_code(config: Config) -> float:
    """Entropy, over ln K, of the code of a view that equals one prototype and is orthogonal to all others: codes get no sharper.

    With a cosine of 1 to one prototype and 0 to K - 1, code entries are proportional to exp(1 / epsilon) and 1.
    """
    most = max(config.method.heads)
    peak = 1 / (1 + (most - 1) * math.exp(-min(1 / config.method.epsilon, 700.0)))
    rest = (1 - peak) / (most - 1)
    return -(peak * math.log(peak) + (most - 1) * (rest * math.log(rest) if rest > 0 else 0.0)) / math.log(most)
