"""The rules behind a verdict, the most certain ones first. Each states one fault of a run, its reason in numbers, and a remedy.

Limits follow from what the numbers mean (ln K, the value that chance gives, the share of time or variance), not from examples. Here are
those about how learning goes; `causes` has those about what goes into a run.
"""

from __future__ import annotations

import math

from swav_platform.training.health.causes import blank, copies, frozen, overflow, starved, still_target, unmixed, unnormalised
from swav_platform.training.health.corridor import LATE, forced_entropy, in_epochs, sharpest_code
from swav_platform.training.health.history import RECENT
from swav_platform.training.health.subject import Finding, Rule, Subject

FLAT_CODES = 0.9  # entropy of codes over ln K: they carry less than a tenth of the information that they could
FORCED = 0.5  # share of ln K that balancing forces on the codes
SPREAD = 0.1  # of features; cosines then differ by less than 0.01, which no temperature in use tells from equal
MOVED = 0.1  # share of their length that weights move in a step: nothing learned is left after ten steps
STALE = 4.0  # drift of the queue, in units of sampling noise: six standard deviations above its expected value of 1


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
    if not run.due() or spread is None or spread >= SPREAD or (apart is not None and apart > 2 * run.like_chance):
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
    if gain is None or not run.due() or run.learned:
        return None
    ratio, drift = history.mean("health/separation"), history.newest("health/queue_drift")
    so_far = f"the loss is {abs(gain):.3f} {'below' if gain >= 0 else 'above'} that of uniform predictions after {history.step + 1:,} steps"
    if drift is not None and drift > STALE:
        return Finding(
            "stuck",
            f"{so_far}, and features of the queue differ from those of the step by {drift:.0f} times the sampling noise",
            "Raise method.queue_start until features change slowly, set method.queue_drift=4, or lower method.queue_length.",
        )
    if ratio is not None and ratio < run.like_chance:
        return Finding(
            "stuck",
            f"{so_far}, and views of different images are as alike as views of one image (variance ratio {ratio:.2f}, by chance 1)",
            "Look at the images with `swav pretrain --preview FILE`: are they all the same? Else change train.optimiser.lr or the views.",
        )
    if not run.due(LATE) or run.tells_apart:
        return None
    return Finding(
        "stuck",
        f"{so_far}, where a healthy run has left it",
        "Raise train.optimiser.lr or shorten its warm-up; compare method.epsilon, method.temperature and views with a recipe in configs/.",
    )


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
