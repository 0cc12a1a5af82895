"""Forecast of a run from its settings: steps, memory, traffic, and warnings about questionable settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from swav_platform.config import Config
from swav_platform.training.device import here, resolved
from swav_platform.training.footprint import Communication, Memory, footprint
from swav_platform.training.optimisation.schedules import warmup_steps

_UNIT_ROUNDOFF = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
_LARGEST_EXPONENT_ERROR = 0.25
_USUAL_LR = {"lars": 0.3 / 256, "sgd": 0.05 / 256}  # per image of the batch: Caron et al. 2020, Koohpayegani et al. 2021
_FEWEST_IN_ROW = 16
_DECODE_MS, _CROP_MS, _COLOUR_MS, _MEASURED_PIXELS = 1.2, 0.5, 1.2, 2 * 224**2 + 6 * 96**2
"""Milliseconds of a core per image; the latter two for views of that many pixels."""

_FREEZE = ("swav", "sela")  # methods that freeze their prototypes at first


@dataclass(frozen=True)
class Schedule:
    """Steps, images and learning rates of a run.

    samples: size of the index. None: steps, images and epoch_steps when they depend on an unknown `samples`; freeze_prototypes for
    methods that freeze none; queue_in_use_from without a queue.
    """

    samples: int | None
    steps: int | None
    images: int | None
    epoch_steps: int | None
    images_per_step: int
    rows_per_step: int
    warmup_steps: int
    start_lr: float
    lr: float
    final_lr: float
    freeze_prototypes: int | None
    queue_in_use_from: int | None


@dataclass(frozen=True)
class Feed:
    """What data tasks can deliver: an estimate from views of photographs of 446x406 pixels on a core of 2024 (docs/results.md).

    tasks: `data.tasks`; None for `auto`, where the other numbers are those of one task. images_per_second_per_worker: workers that are
    faster than this wait for data.
    """

    tasks: int | None
    ms_per_image: float
    images_per_second: float
    images_per_second_per_worker: float


@dataclass(frozen=True)
class Preflight:
    """What `swav pretrain --dry-run` prints."""

    schedule: Schedule
    memory: Memory
    communication: Communication
    warnings: list[str]
    feed: Feed

    def tree(self) -> dict[str, Any]:
        return asdict(self)


def preflight(config: Config, samples: int | None = None) -> Preflight:
    """samples: size of the index, if known. Raises UsageError for an unknown encoder or method."""
    of_run = schedule(config, samples)
    return Preflight(of_run, *footprint(config), list(warnings(config, of_run)), feed(config))


def feed(config: Config) -> Feed:
    pixels = sum(group.count * group.size**2 for group in config.views.values())
    crops = _CROP_MS + (_COLOUR_MS if config.data.photometric == "worker" else 0.0)
    ms = _DECODE_MS + crops * pixels / _MEASURED_PIXELS
    tasks = None if config.data.tasks == "auto" else config.data.tasks
    rate = (tasks or 1) * 1000 / ms
    return Feed(tasks, ms, rate, rate if tasks is None else rate / config.most_workers)


def schedule(config: Config, samples: int | None) -> Schedule:
    """samples: size of the index, if known."""
    train, known = config.train, samples is not None or config.train.steps is not None or config.train.images is not None
    steps = config.steps(samples or 1) if known else None
    queue = config.method.queue_length // train.batch if config.method.name == "swav" else 0
    rows = None if samples is None else -(-samples // config.data.row_size)
    return Schedule(
        samples=samples,
        steps=steps,
        images=None if steps is None else steps * train.batch,
        epoch_steps=None if rows is None else -(-rows // config.rows_per_step),
        images_per_step=train.batch,
        rows_per_step=config.rows_per_step,
        warmup_steps=warmup_steps(train.optimiser, train.batch),
        start_lr=train.optimiser.start_lr,
        lr=train.optimiser.lr,
        final_lr=train.optimiser.final_lr,
        freeze_prototypes=config.method.freeze_prototypes if config.method.name in _FREEZE else None,
        queue_in_use_from=config.method.queue_start + queue if queue else None,
    )


def warnings(config: Config, of_run: Schedule) -> Iterator[str]:
    """Warnings of at most three sentences: what, why, and what to do."""
    config = resolved(config, here())
    if config.method.name == "swav":
        yield from _codes(config, of_run)
    if config.method.name in _FREEZE:
        yield from _frozen(config, of_run)
    if config.method.name in ("deepcluster", "sela"):
        yield from _memories(config, of_run)
    if config.method.name == "mean_shift":
        yield from _bank(config)
    if of_run.samples is not None:
        yield from _few(config, of_run.samples)
    yield from _rate(config, of_run)
    yield from _ranks(config)
    yield from image_warnings(config)


def image_warnings(config: Config) -> Iterator[str]:
    """Limits of `data.images` that are set but have no effect because others are lower, or that raise others."""
    from swav_platform.images.decoding.header import most_pixels

    policy = config.data.images
    limits = ("max_pixels", "max_decode_seconds", "max_decode_bytes")
    if all(getattr(policy, name) == type(policy).model_fields[name].default for name in limits):
        return
    short = {name: most for name, most in most_pixels(policy).items() if most < policy.max_pixels}
    if short:
        listed = ", ".join(f"{name} from about {most / 1e6:.0f} million" for name, most in short.items())
        yield (
            f"data.images.max_pixels={policy.max_pixels:,} is more than the limits on decoding accept: {listed} pixels are refused. "
            f"Raise data.images.max_decode_seconds ({policy.decode_seconds:g}) and max_decode_bytes ({policy.decode_bytes:,}), "
            "or set them to null."
        )
    elif policy.max_pixels > type(policy).model_fields["max_pixels"].default and None in (
        policy.max_decode_seconds,
        policy.max_decode_bytes,
    ):
        yield (
            f"data.images.max_pixels={policy.max_pixels:,} raises the limits on decoding to {policy.decode_seconds:.3g} s and "
            f"{policy.decode_bytes / 2**20:,.0f} MiB an image. Earlier versions kept to 1.5 s and 640 MiB, so a run that began with one "
            f"uses images that it refused until now."
        )
    if policy.max_bytes < policy.max_pixels:
        yield (
            f"data.images.max_bytes={policy.max_bytes:,} is less than a byte for each of max_pixels={policy.max_pixels:,}. "
            "Large lossless images (PNG, TIFF) take one to three bytes a pixel and are refused as too_many_bytes: raise max_bytes too."
        )


def _codes(config: Config, of_run: Schedule) -> Iterator[str]:
    method, batch = config.method, config.train.batch
    queue, most = method.queue_length // batch * batch, max(method.heads)
    if batch + queue < most:
        yield (
            f"A step has {batch + queue:,} samples (train.batch + method.queue_length) for {most:,} prototypes, so most prototypes get no "
            f"sample. Lower method.prototypes, or set method.queue_length to {_whole(most * 4 // 3 - batch, batch):,} or more."
        )
    if method.queue_length % batch:
        yield f"method.queue_length={method.queue_length:,} is rounded down to {queue:,}, a multiple of train.batch={batch:,}."
    error = _UNIT_ROUNDOFF[config.train.precision] / method.epsilon
    if error > _LARGEST_EXPONENT_ERROR:
        yield (
            f"method.epsilon={method.epsilon:g} is small for train.precision={config.train.precision}: rounding of the features changes the "
            f"exponents of the codes by up to {error:.2f}. Raise method.epsilon, or set train.precision=fp32."
        )
    if of_run.steps is not None and of_run.queue_in_use_from is not None and of_run.queue_in_use_from >= of_run.steps:
        yield f"The queue is never used: it is full at step {of_run.queue_in_use_from:,}, but the run has {of_run.steps:,} steps."


def _frozen(config: Config, of_run: Schedule) -> Iterator[str]:
    method = config.method
    if of_run.steps is not None and method.learn_prototypes and method.freeze_prototypes >= of_run.steps:
        yield f"Prototypes never learn: method.freeze_prototypes={method.freeze_prototypes:,} covers all {of_run.steps:,} steps."


def _memories(config: Config, of_run: Schedule) -> Iterator[str]:
    if of_run.steps is not None and of_run.epoch_steps is not None and of_run.steps <= of_run.epoch_steps:
        yield (
            f"No weight changes: {config.method.name} does not train in its first epoch of {of_run.epoch_steps:,} steps, and the run has "
            f"{of_run.steps:,}. Raise train.epochs or train.steps, or set method.name=swav."
        )


def _few(config: Config, samples: int) -> Iterator[str]:
    most = max(config.method.heads)
    if samples < config.train.batch:
        yield f"{samples:,} images are fewer than train.batch={config.train.batch:,}, so a step repeats images. Lower train.batch."
    if samples < most and config.method.name in ("swav", "deepcluster", "sela"):
        yield f"{most:,} prototypes for {samples:,} images: some prototypes get no image. Set method.prototypes to at most a tenth of the images."


def _bank(config: Config) -> Iterator[str]:
    method, batch = config.method, config.train.batch
    held = max(1, method.bank_length // batch) * batch
    if held < method.neighbours:
        yield f"The bank holds {held:,} embeddings (whole steps), fewer than method.neighbours={method.neighbours:,}, so all are neighbours."
    elif held != method.bank_length:
        yield f"method.bank_length={method.bank_length:,} is rounded to {held:,}, a multiple of train.batch={batch:,}."


def _rate(config: Config, of_run: Schedule) -> Iterator[str]:
    options, batch = config.train.optimiser, config.train.batch
    usual = _USUAL_LR.get(options.name, 0.0) * batch
    if usual and not usual / 8 <= options.lr <= usual * 8:
        yield (
            f"train.optimiser.lr={options.lr:g} differs more than eightfold from the usual rate of {options.name} at a batch of {batch:,}, "
            f"about {usual:.3g} (proportional to the batch)."
        )
    if options.name == "adamw" and options.lr > 0.01:
        yield f"train.optimiser.lr={options.lr:g} is large for adamw; usual rates are 0.0005 to 0.003."
    if of_run.steps is not None and of_run.warmup_steps >= of_run.steps:
        yield f"The learning rate never decreases: the warm-up takes {of_run.warmup_steps:,} of {of_run.steps:,} steps."


def _ranks(config: Config) -> Iterator[str]:
    rows, workers = config.rows_per_step, config.fewest_workers
    most = -(-rows // workers)
    if rows % workers:
        yield (
            f"{rows} rows per step on {workers} workers: some have {most} and some {rows // workers}, so at most "
            f"{100 * rows / (most * workers):.0f} % of the workers' time is used. Set train.workers to a divisor of {rows}."
        )
    if config.train.accumulate == "recompute" and most == 1:
        yield "train.accumulate=recompute saves nothing with one row per worker and costs a forward pass. Set train.accumulate=hold."
    if config.model.normalisation == "step" and most > 1:
        yield (
            f"model.normalisation=step keeps the graphs of all {most} rows of a worker at once. To save memory, use more workers, "
            f"model.activation_checkpointing, or model.normalisation=row with train.accumulate=recompute."
        )
    if config.train.compile and config.model.normalisation == "step" and config.most_workers > 1:
        yield (
            "train.compile has no benefit with model.normalisation=step on several workers, since each batch norm waits for the other "
            "workers and breaks the graph. Set model.normalisation=row, or train.compile=false."
        )
    if config.model.normalisation == "row" and config.data.row_size < _FEWEST_IN_ROW:
        yield f"Batch statistics of {config.data.row_size} images (data.row_size) are noisy. Use rows of {_FEWEST_IN_ROW} or more, or model.normalisation=step."


def _whole(number: int, batch: int) -> int:
    """Rounds up to a multiple of `batch`."""
    return -(-number // batch) * batch
