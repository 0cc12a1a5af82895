"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from swav_platform.config import Optimiser


def learning_rate(step: int, total: int, options: Optimiser, batch: int = 1) -> float:
    """Linear warm-up, then half a cosine down to `final_lr` (Loshchilov and Hutter 2017, eq. 5).

    Step 0 has `start_lr`. The last step of the warm-up and the step after it have `lr`, as in the published code.
    batch: images of a step, for a warm-up in images.
    """
    warm = warmup_steps(options, batch)
    if step < warm:
        return options.start_lr + (options.lr - options.start_lr) * step / max(1, warm - 1)
    turn = math.pi * (step - warm) / (total - warm)
    return options.final_lr + 0.5 * (options.lr - options.final_lr) * (1 + math.cos(turn))


def warmup_steps(options: Optimiser, batch: int) -> int:
    """Steps of the warm-up; `warmup_images` takes precedence."""
    return options.warmup_steps if options.warmup_images is None else options.warmup_images // batch
