"""When a run has to end: a loss that is no number, images that can't be read."""

from __future__ import annotations

import math

from torch.amp.grad_scaler import GradScaler

from swav_platform.errors import UserError

_FEWEST_POSITIONS = 1000  # before that a share says little


def check_finite(step: int, loss: float, grad_norm: float, lr: float, scaler: GradScaler) -> None:
    """Raises UserError for NaN or infinity; called before the weights move. With a scaler that is enabled a gradient may be
    infinite, until its scale has sunk to nothing."""
    overflow = scaler.is_enabled() and math.isfinite(loss) and scaler.get_scale() >= 1
    if not math.isfinite(loss + grad_norm) and not overflow:
        raise UserError(
            f"The loss of step {step} is {loss} and its gradient has length {grad_norm} (learning rate {lr:.4g}), so the run was ended; the weights of the last "
            f"checkpoint are sound. Lower train.optimiser.lr or lengthen train.optimiser.warmup_steps, or take "
            f"train.precision=fp32 if it was lower, under another run.name."
        )


def too_many_quarantined(quarantined: int, positions: int, epoch: int, limit: float) -> bool:
    """Whether more than `limit` of `positions` had an unreadable sample of their own, from 1000 positions or an epoch on."""
    return positions >= min(_FEWEST_POSITIONS, epoch) and quarantined > limit * positions


def quarantine_error(quarantined: int, positions: int, limit: float, reason: str, shard: str) -> UserError:
    """What `too_many_quarantined` leads to; `reason` and `shard` are the most frequent ones."""
    return UserError(
        f"{quarantined:,} of the first {positions:,} images can't be used, more than data.max_quarantine_fraction={limit:g} "
        f"allows; most often the reason is {reason}, and {shard} is the worst shard. Look at `swav ledger` of the run, then "
        f"take bad shards out, relax data.images, or raise data.max_quarantine_fraction."
    )
