"""The rules behind a verdict, the most certain ones first. Each states one fault of a run, its reason in numbers, and a remedy.

Limits follow from what the numbers mean (ln K, the value that chance gives, the share of time or variance), not from examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from swav_platform.config import Config
from swav_platform.training.health.corridor import EARLY, LATE, Corridor, forced_entropy, in_epochs, sharpest_code
from swav_platform.training.health.history import RECENT, History


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
        seen = len(history.readings) >= RECENT and history.recent[0].step >= corridor.first
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


@dataclass(frozen=True)
class Finding:
    """remedy: settings that a rollback changes; empty if none would help."""

    state: str
    because: str
    do: str
    remedy: Mapping[str, float] = field(default_factory=dict)


Rule = Callable[[Subject], Finding | None]

NORM_ERROR = 0.05  # of the length of unit vectors; bfloat16 has an error of 0.004
LIKE_CHANCE = 1.5  # a variance ratio whose expected value by chance is 1
FEWEST = 16  # images of a step, for that ratio to be near its expected value
LEAST_GAIN = 0.02  # nats: a network that gives the right prototype a 2 % higher probability than the others
SORTED = 4.0  # times the variance that random draws have; a ratio of few steps by chance stays below
WAITING = 0.5  # share of time: the run would be at least twice as fast with faster data
FLAT_CODES = 0.9  # entropy of codes over ln K: they carry less than a tenth of the information that they could
FORCED = 0.5  # share of ln K that balancing forces on the codes
SPREAD = 0.1  # of features; cosines then differ by less than 0.01, which no temperature in use tells from equal
MOVED = 0.1  # share of their length that weights move in a step: nothing learned is left after ten steps
SHORT = 200  # steps of a run that only tries something
STALE = 4.0  # drift of the queue, in units of sampling noise: six standard deviations above its expected value of 1


def unnormalised(run: Subject) -> Finding | None:
    norm = run.history.mean("health/embedding_norm")
    if norm is None or abs(norm - 1) <= NORM_ERROR:
        return None
    return Finding(
        "broken",
        f"embeddings have a length of {norm:.3g}, but the loss needs unit length",
        "Normalise what the network returns (models/heads.py: unit).",
    )


def starved(run: Subject) -> Finding | None:
    share = run.history.mean("data/wait_share")
    if share is None or share < WAITING or len(run.history.readings) <= RECENT:
        return None
    rate = run.history.newest("data/images_per_second") or 0.0
    return Finding(
        "starved",
        f"{share:.0%} of the time goes into waiting for images ({rate:.3g} images/s)",
        "Raise data.tasks, move the shards closer, or use smaller images; `swav ledger RUN` shows failed reads.",
    )


def copies(run: Subject) -> Finding | None:
    copied, newest = run.history.newest("data/copies_total"), run.history.readings[-1]
    seen = (newest.step + 1) * run.config.train.batch
    seen = min(seen, run.samples) if run.samples else seen
    if not copied or copied < seen / 2:
        return None
    return Finding(
        "broken",
        f"{copied:,.0f} of {seen:,} images have the same bytes as others",
        "List the copies with `swav ledger RUN --duplicates` and index the images without them (`swav index --exclude`).",
    )


def blank(run: Subject) -> Finding | None:
    newest = run.history.readings[-1]
    empty = newest.get("data/blank_total")
    seen = (newest.step + 1) * run.config.train.batch
    if empty is None or empty < seen / 2:
        return None
    return Finding(
        "broken",
        f"{empty:,.0f} of {seen:,} images are black, white or of one colour",
        "Look at them with `swav ledger RUN --html FILE`; set data.images.levels for 12-bit images.",
    )


def unmixed(run: Subject) -> Finding | None:
    ratio = run.history.newest("data/step_likeness")
    few = run.samples is not None and run.samples < 2 * run.config.train.batch
    if ratio is None or ratio < SORTED or few or run.history.step < 2 * RECENT:
        return None
    return Finding(
        "broken",
        f"images of one step resemble each other: they vary {ratio:.3g} times as much from step to step as random draws would",
        "Mix the stream: raise data.window or lower data.block, or pack the shards in random order.",
    )


def frozen(run: Subject) -> Finding | None:
    recent = run.history.recent
    names = ("train/update_share", "train/grad_norm")
    still = [any(r.get(name) == 0.0 for name in names) and r.lr > 0 for r in recent]
    if len(still) < RECENT or not all(still) or (in_epochs(run.config) and recent[0].step < run.corridor.first):
        return None
    return Finding(
        "stuck",
        f"no weight moves: all are frozen, or get no gradient (last {RECENT} logged steps)",
        "Unfreeze the network (requires_grad, Method.frozen), or raise train.optimiser.lr.",
    )


def still_target(run: Subject) -> Finding | None:
    method = run.config.method
    left = method.momentum**run.total
    if method.name != "mean_shift" or left <= 0.5 or (method.momentum < 1 and run.total < SHORT):
        return None
    return Finding(
        "stuck",
        f"targets come from a network that stays random: with a momentum of {method.momentum:g}, {left:.0%} of it is left at the end",
        f"Set method.momentum to {1 - 5 / max(run.total, 10):.2g} or less.",
    )


def overflow(run: Subject) -> Finding | None:
    """Under fp16 the scale of the loss falls until gradients fit; below 1 they do not fit at all."""
    scale, recent = run.history.newest("train/loss_scale"), run.history.recent
    lost = [r for r in recent if not math.isfinite(r.get("train/grad_norm") or 0.0)]
    if run.config.train.precision != "fp16" or scale is None or len(lost) < RECENT or scale > 256:
        return None
    return Finding(
        "broken",
        f"gradients overflow in fp16 although the loss is scaled by {scale:g} only",
        "Set train.precision=bf16, or fp32, under another run.name.",
    )


def diverging(run: Subject) -> Finding | None:
    history, first = run.history, run.history.first
    moved, gain = history.mean("train/update_share"), run.gain
    if moved is not None and moved > MOVED and history.step > 2 * RECENT and (gain is None or gain < 0 or moved > 1):
        return Finding(
            "diverging",
            f"a step moves the weights by {moved:.0%} of their length, so nothing learned lasts",
            "Lower train.optimiser.lr tenfold, or lengthen train.optimiser.warmup_steps.",
            _lower_rate(run),
        )
    untrained = None if first is None or in_epochs(run.config) else first.loss
    if (
        untrained is not None
        and gain is not None
        and gain < 0
        and run.due(0.0)
        and min(r.loss for r in history.recent) > untrained
    ):
        return Finding(
            "diverging",
            f"the loss is {-gain:.2f} above that of uniform predictions and higher than that of the untrained network ({untrained:.2f})",
            "Lower train.optimiser.lr tenfold, or lengthen train.optimiser.warmup_steps.",
            _lower_rate(run),
        )
    norms = [r.get("train/grad_norm") or 0.0 for r in history.recent]
    start = None if first is None else first.get("train/grad_norm")
    rising = len(norms) == RECENT and norms == sorted(norms) and start and norms[0] > 100 * start
    if rising and gain is not None and gain < 0:
        return Finding(
            "diverging",
            f"the gradient has grown from {start:.3g} to {norms[-1]:.3g} and the loss is {-gain:.2f} above ln K",
            "Lower train.optimiser.lr, or set train.clip.",
            _lower_rate(run),
        )
    return None


def collapsed(run: Subject) -> Finding | None:
    spread, rank = run.history.mean("health/feature_std"), run.history.mean("health/rankme")
    apart = run.history.mean("health/separation")
    if not run.due() or spread is None or spread >= SPREAD or (apart is not None and apart > 2 * LIKE_CHANCE):
        return None
    used = "" if rank is None else f", RankMe {rank:.1f}"
    return Finding(
        "collapsed",
        f"embeddings of all images are nearly the same (spread {spread:.3f} of 1{used})",
        "Lower train.optimiser.lr or lengthen its warm-up, and go back to a checkpoint before this step.",
        _lower_rate(run),
    )


def soft_codes(run: Subject) -> Finding | None:
    """Codes that say nothing, because epsilon allows no others or because too few samples are balanced over too many prototypes."""
    method, entropy = run.config.method, run.history.mean("health/code_entropy")
    if entropy is None or run.config.method.hard_codes:
        return None
    ln_k = math.fsum(math.log(k) for k in method.heads) / len(method.heads)
    if sharpest_code(run.config) > FLAT_CODES:
        return Finding(
            "stuck",
            f"codes are nearly uniform (entropy {entropy:.2f} of {ln_k:.2f} nats): with method.epsilon={method.epsilon:g} none can be sharper",
            "Lower method.epsilon; 0.05 is usual.",
            {"method.epsilon": method.epsilon / 4},
        )
    gain = run.gain
    if forced_entropy(run.config) > FORCED and run.due() and gain is not None and gain < FORCED * ln_k / 2:
        most, batch = max(method.heads), run.config.train.batch
        return Finding(
            "stuck",
            f"{most:,} prototypes are balanced over {batch + method.queue_length // batch * batch:,} samples, so each code covers many at "
            f"once (entropy {entropy:.2f} of {ln_k:.2f} nats)",
            f"Lower method.prototypes to about {max(2, batch // 2)}, or raise train.batch or method.queue_length.",
        )
    return None


def stuck(run: Subject) -> Finding | None:
    """The loss is still that of a network that predicts nothing, and no measure shows that it is about to leave it."""
    gain, history = run.gain, run.history
    if gain is None or not run.due() or gain > max(_noise(run), LEAST_GAIN):
        return None
    ratio, drift = history.mean("health/separation"), history.newest("health/queue_drift")
    so_far = f"the loss is {abs(gain):.3f} {'below' if gain >= 0 else 'above'} that of uniform predictions after {history.step + 1:,} steps"
    if drift is not None and drift > STALE:
        return Finding(
            "stuck",
            f"{so_far}, and features of the queue differ from those of the step by {drift:.0f} times the sampling noise",
            "Raise method.queue_start until features change slowly, set method.queue_drift=4, or lower method.queue_length.",
        )
    if ratio is not None and ratio < LIKE_CHANCE and run.config.train.batch >= FEWEST:
        return Finding(
            "stuck",
            f"{so_far}, and views of different images are as alike as views of one image (variance ratio {ratio:.2f}, by chance 1)",
            "Look at the images with `swav pretrain --preview FILE`: are they all the same? Else change train.optimiser.lr or the views.",
        )
    if not run.due(LATE):
        return None
    return Finding(
        "stuck",
        f"{so_far}, where a healthy run has left it",
        "Raise train.optimiser.lr or shorten its warm-up; compare method.epsilon, method.temperature and views with a recipe in configs/.",
    )


def _noise(run: Subject) -> float:
    """Two standard errors of the recent loss, from how readings vary."""
    losses = [r.loss for r in run.history.recent]
    mean = math.fsum(losses) / len(losses)
    return 2 * math.sqrt(math.fsum((x - mean) ** 2 for x in losses) / (len(losses) - 1) / len(losses))


def _lower_rate(run: Subject) -> dict[str, float]:
    return {"train.optimiser.lr": run.config.train.optimiser.lr / 4}


RULES: tuple[Rule, ...] = (
    unnormalised,
    blank,
    copies,
    overflow,
    frozen,
    still_target,
    diverging,
    unmixed,
    collapsed,
    soft_codes,
    stuck,
    starved,
)
