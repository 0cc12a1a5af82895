"""Rules about what goes into a run: its images, its settings, its network. Limits follow from what the numbers mean."""

from __future__ import annotations

import math

from swav_platform.training.health.corridor import in_epochs
from swav_platform.training.health.history import RECENT
from swav_platform.training.health.subject import Finding, Subject

NORM_ERROR = 0.05  # of the length of unit vectors; bfloat16 has an error of 0.004
SORTED = 4.0  # times the variance that random draws have; a ratio of few steps by chance stays below
WAITING = 0.5  # share of time: the run would be at least twice as fast with faster data
SHORT = 200  # steps of a run that only tries something


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
