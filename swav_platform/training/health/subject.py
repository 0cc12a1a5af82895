"""A run as the rules of a verdict see it, and what they find."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from swav_platform.config import Config
from swav_platform.training.health.corridor import EARLY, Corridor
from swav_platform.training.health.history import RECENT, SAMPLED, History

LEAST_SHARE = 0.05  # of the distance from ln K to the entropy of the codes
LEAST_GAIN = 0.02  # nats: a network that gives the right prototype a 2 % higher probability than the others


@dataclass(frozen=True)
class Subject:
    """A run, as rules see it. samples: size of the index, None if unknown. total: steps of the run."""

    config: Config
    history: History
    corridor: Corridor
    samples: int | None
    total: int

    def due(self, share: float = EARLY) -> bool:
        """Whether the run has had this share of its learning, with nothing frozen in the recent steps."""
        history, corridor = self.history, self.corridor
        seen = len(history.readings) > RECENT and history.readings[-RECENT - 1].step + 1 >= corridor.first
        return seen and history.lr_spent >= share * corridor.whole

    @property
    def gain(self) -> float | None:
        """How far the loss is below that of a network that predicts nothing, in nats; None if that is unknown."""
        loss, recent = self.history.loss, self.history.recent
        if loss is None:
            return None
        for name in ("health/loss_minus_ln_k", "health/loss_minus_chance"):
            if (above := recent[-1].get(name)) is not None:
                return recent[-1].metrics["train/loss"] - above - loss
        return None

    @property
    def like_chance(self) -> float:
        """The largest mean of `health/separation` that chance explains: four standard errors above 1.

        The ratio has n - 1 and (n - 1)(V - 1) degrees of freedom, for n images and V views, in each dimension in use (RankMe).
        """
        views, images = sum(group.count for group in self.config.views.values()), min(self.config.train.batch, SAMPLED)
        dims = max(self.history.mean("health/rankme") or 1.0, 1.0)
        variance = 2 / dims * (1 + 1 / max(views - 1, 1)) / max(images - 1, 1)
        return 1 + 4 * math.sqrt(variance / RECENT)

    @property
    def tells_apart(self) -> bool:
        """Whether the network tells images apart better than the untrained one did, by more than chance."""
        ratio, first = self.history.mean("health/separation"), self.history.first
        before = None if first is None else first.get("health/separation")
        return ratio is not None and before is not None and ratio > self.like_chance * max(before, 1.0)

    @property
    def learned(self) -> bool | None:
        """Whether the loss has left that of uniform predictions, by more than noise and a small share of its range; None if unknown.

        A loss is at least the entropy of its targets. While codes are nearly uniform, little can be gained, and little is progress.
        """
        gain, losses = self.gain, [r.loss for r in self.history.recent]
        if gain is None:
            return None
        heads = self.config.method.heads
        width = math.fsum(math.log(k) for k in heads) / len(heads) - (self.history.mean("health/code_entropy") or 0.0)
        mean = math.fsum(losses) / len(losses)
        noise = math.sqrt(math.fsum((x - mean) ** 2 for x in losses) / (len(losses) - 1) / len(losses))
        return gain > max(2 * noise, min(LEAST_GAIN, LEAST_SHARE * max(width, 0.0)))


@dataclass(frozen=True)
class Finding:
    """remedy: settings that a rollback changes; empty if none would help."""

    state: str
    because: str
    do: str
    remedy: Mapping[str, float] = field(default_factory=dict)


Rule = Callable[[Subject], Finding | None]
