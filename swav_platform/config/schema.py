"""One typed tree of settings: YAML files, composed by `extends`, then dotted overrides.

Each section is grouped as *changes results* and *does not change results*: two runs that agree in the
first kind learn the same weights whatever the second kind says.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from swav_platform.errors import UsageError


class ConfigError(UsageError):
    """Wrong configuration. The message is one paragraph fit for a user."""


NAME = r"^[A-Za-z0-9][\w. -]*$"  # of a run or a model: a folder, a job's id and a part of models:/ URIs


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Photometric(_Section):
    """Colour changes of a view (changes results). Defaults: Caron et al. 2020, appendix A (SimCLR's, strength 1)."""

    jitter: float = Field(0.8, ge=0, le=1, description="probability of colour jitter")
    brightness: float = Field(0.8, ge=0)
    contrast: float = Field(0.8, ge=0)
    saturation: float = Field(0.8, ge=0)
    hue: float = Field(0.2, ge=0, le=0.5)
    grey: float = Field(0.2, ge=0, le=1, description="probability of greyscale")
    blur: float = Field(0.5, ge=0, le=1, description="probability of Gaussian blur")
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = Field(0.0, ge=0, le=1, description="probability of solarisation")

    @model_validator(mode="after")
    def _ranges(self) -> Photometric:
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma must be 0 < low <= high, got {self.blur_sigma}")
        return self


_WEAKER = {"brightness": 0.4, "contrast": 0.4}
_NONE = {"jitter": 0.0, "grey": 0.0, "blur": 0.0}
PHOTOMETRIC: dict[str, dict[str, float]] = {
    "none": _NONE,
    "swav": {},
    "simclr": {},  # the same at strength 1 (Chen et al. 2020, appendix A)
    "dino-global-1": _WEAKER | {"saturation": 0.2, "hue": 0.1, "blur": 1.0},
    "dino-global-2": _WEAKER | {"saturation": 0.2, "hue": 0.1, "blur": 0.1, "solarise": 0.2},
    "dino-local": _WEAKER | {"saturation": 0.2, "hue": 0.1},
    "mean-shift-weak": _NONE,
    "mean-shift-strong": _WEAKER | {"saturation": 0.4, "hue": 0.1},
}
"""Published colour changes by name (Caron et al. 2020, 2021; Koohpayegani et al. 2021). What is not said is the default's."""


class ViewGroup(_Section):
    """Views of one resolution (changes results). `scale` is the range of the crop's share of the image's area."""

    size: int = Field(ge=8, le=1024)
    count: int = Field(ge=1, le=32)
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = Field(0.5, ge=0, le=1)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    photometric: Photometric = Field(Photometric(), description="settings, or the name of published ones")

    @field_validator("photometric", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in PHOTOMETRIC:
            nearest = difflib.get_close_matches(value, PHOTOMETRIC, n=1, cutoff=0.0)[0]
            raise ValueError(f"no colour changes are called so; the nearest name is {nearest!r} (of {', '.join(PHOTOMETRIC)})")
        return PHOTOMETRIC[value]

    @model_validator(mode="after")
    def _ranges(self) -> ViewGroup:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be 0 < low <= high, got {self.ratio}")
        return self


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Of images that can be taken; no setting opens another one (docs/security.md)."""

_SHORT = {"JPG": "JPEG", "TIF": "TIFF"}


class ImagePolicy(_Section):
    """Which images are taken (changes results). What falls outside becomes an outcome in the ledger."""

    min_side: int = Field(16, ge=1)
    max_pixels: int = Field(64_000_000, ge=1, description="images of this many pixels or more are refused")
    max_bytes: int = Field(64 * 2**20, ge=1)
    max_aspect: float = Field(20.0, ge=1)
    truncated: Literal["reject", "accept"] = "reject"
    formats: tuple[str, ...] = FORMATS

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        """In any case and by the usual extensions too; in the order of FORMATS, so that one choice has one digest."""
        taken = {_SHORT.get(name.strip().upper(), name.strip().upper()) for name in formats}
        if not taken:
            raise ValueError(f"at least one format has to be taken, of {', '.join(FORMATS)}")
        if not taken <= set(FORMATS):
            raise ValueError(f"{', '.join(sorted(taken - set(FORMATS)))}: not among {', '.join(FORMATS)}, which can be decoded")
        return tuple(name for name in FORMATS if name in taken)


class Source(_Section):
    """One of several data sets that are mixed (changes results)."""

    pattern: str
    weight: float = Field(1.0, gt=0, description="share of the positions, in proportion to the other weights")


class Data(_Section):
    # changes results
    sources: tuple[str | Source, ...] = Field((), description="patterns of shards; with weights: data sets that are mixed")
    samples_per_epoch: int | None = Field(None, ge=1, description="what train.epochs counts; all samples when absent")
    one_pass: bool = Field(False, description="no sample is used twice: the run ends before the data does")
    row_size: int = Field(32, ge=1, description="positions of a row: what travels, trains and fails together")
    block: int = Field(16, ge=1, description="consecutive samples read together")
    window: int = Field(64, ge=1, description="blocks mixed with each other")
    images: ImagePolicy = ImagePolicy()
    photometric: Literal["worker", "device"] = Field("device", description="`worker` rounds changed views to 8 bits")
    streams: int = Field(1, ge=1, description="pipelines that make rows side by side; a constant of the plan")
    # does not change results
    index: str | None = Field(None, description="folder of the index; made from `sources` when absent")
    exclude: str | None = Field(None, description="list of samples to leave out of the index: KEY or SHARD<tab>KEY in each line")
    allow_pipe: bool = Field(False, description="run `pipe:COMMAND` sources, also those of an index, which are shell commands")
    tasks: int = Field(2, ge=1, description="data tasks that make rows at the same time, beside one to spare for each stream")
    segment: int = Field(1024, ge=1, description="rows of one Ray Data set in the chain")
    node_labels: dict[str, str] = Field({}, description="labels of the Ray nodes that data tasks may run on; any node when empty")
    sample_log: str | None = None
    max_quarantine_fraction: float = Field(0.5, gt=0, le=1)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of all sources."""
        return tuple(source if isinstance(source, str) else source.pattern for source in self.sources)

    @property
    def mixed(self) -> bool:
        """Whether sources have weights of their own."""
        return any(not isinstance(source, str) for source in self.sources)


class Model(_Section):
    # changes results
    name: str = Field("resnet50", description="of ours, or timm/NAME")
    stem: Literal["imagenet", "small"] = Field("imagenet", description="small: 3x3, no pooling (ResNet, RegNet)")
    stem_stride: Literal[1, 2] = Field(1, description="stride of the small stem")
    projection_hidden: int = Field(2048, ge=1)
    projection_dim: int = Field(128, ge=2)
    normalisation: Literal["row", "step"] = Field(
        "row", description="whose batch statistics: of one row, or of all rows of the step"
    )
    init: str | None = Field(None, description="weights that the encoder starts from: .safetensors, .pth or a package's folder")
    # does not change results (beyond rounding)
    activation_checkpointing: bool = Field(False, description="make activations of blocks a second time instead of keeping them")


class Method(_Section):
    """Changes results. Defaults: each method's own paper; which options it reads is in docs/methods.md."""

    name: str = "swav"
    assign_views: tuple[int, ...] = Field((0, 1), description="views that codes, memories or momentum targets are made of")
    temperature: float = Field(0.1, gt=0)
    # methods with prototypes
    prototypes: int | tuple[int, ...] = Field(3000, description="of one head, or of each of several")
    learn_prototypes: bool = Field(True, description="false: they stay as they were drawn")
    freeze_prototypes: int = Field(313, ge=0, description="first steps in which prototypes stay as they are")
    # codes of equal mass
    epsilon: float = Field(0.05, gt=0)
    iterations: int = Field(3, ge=1, description="Sinkhorn iterations over the step")
    hard_codes: bool = Field(False, description="a code is its largest entry alone")
    prior: Literal["uniform", "power_law"] = Field("uniform", description="masses that prototypes share out")
    prior_exponent: float = Field(0.25, ge=0, description="of the power law: prototype k wants k to minus this")
    queue_length: int = Field(0, ge=0, description="features kept per assignment view, over all ranks")
    queue_start: int = Field(0, ge=0, description="step from which on the queue is filled")
    queue_drift: float | None = Field(
        None, gt=0, description="the queue is used while features drift no more; 1 is what chance makes"
    )
    # assignments of a whole epoch
    kmeans_iterations: int = Field(10, ge=1)
    bank_iterations: int = Field(1000, ge=1, description="most Sinkhorn iterations over the bank")
    bank_tolerance: float = Field(0.1, ge=0, description="how far the samples' masses may be off, summed, for them to end")
    # a momentum network
    momentum: float = Field(0.99, ge=0, le=1)
    neighbours: int = Field(5, ge=1)
    bank_length: int = Field(128_000, ge=1, description="momentum embeddings kept per assignment view, over all ranks")

    @property
    def heads(self) -> tuple[int, ...]:
        """Prototypes of each head."""
        return (self.prototypes,) if isinstance(self.prototypes, int) else self.prototypes

    @model_validator(mode="after")
    def _ranges(self) -> Method:
        if not self.heads or min(self.heads) < 2:
            raise ValueError(f"prototypes must be at least 2, in each head, got {self.prototypes}")
        return self


class Optimiser(_Section):
    """Changes results."""

    name: Literal["lars", "sgd", "adamw"] = "lars"
    lr: float = Field(4.8, gt=0)
    final_lr: float = Field(0.0048, ge=0)
    warmup_steps: int = Field(3130, ge=0)
    warmup_images: int | None = Field(None, ge=0, description="wins over warmup_steps; whole steps of it")
    start_lr: float = Field(0.3, ge=0)
    weight_decay: float = Field(1e-6, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    trust: float = Field(0.001, gt=0, description="LARS trust coefficient")
    clip_rate: bool = Field(False, description="LARS: a layer moves at its adapted rate or at lr, whichever is smaller (LARC)")
    exclude_1d: bool = Field(False, description="biases and norms: no weight decay, no adaptation")


class Train(_Section):
    # changes results
    batch: int = Field(256, ge=1)
    epochs: float | None = Field(None, gt=0)
    images: int | None = Field(None, ge=1, description="length of the run in images; wins over epochs")
    steps: int | None = Field(None, ge=1, description="wins over images and epochs")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    optimiser: Optimiser = Optimiser()
    clip: float | None = Field(None, gt=0, description="longest gradient of a step; longer ones are cut to it")
    ema: float | None = Field(None, gt=0, lt=1, description="decay a step of averaged weights, which are what is exported")
    # does not change results (beyond rounding)
    accumulate: Literal["hold", "recompute"] = Field(
        "hold", description="a rank's rows of a step: keep their graphs, or make codes first and then go row by row"
    )
    shard: Literal["none", "fsdp2"] = Field(
        "none", description="weights, gradients and optimiser state: whole on each worker, or split over them"
    )
    compile: bool = Field(False, description="encoders through torch.compile")
    deterministic: bool = Field(False, description="only kernels that give the same bits again (CUDA)")
    workers: int = Field(1, ge=1)
    threads: int | None = Field(None, ge=1, description="torch threads of a worker; cores / workers when absent")
    checkpoint_every: int = Field(500, ge=1, description="steps")
    keep_checkpoints: int = Field(3, ge=1)
    log_every: int = Field(10, ge=1, description="steps")


class Tracking(_Section):
    """Does not change results."""

    uri: str | None = Field(None, description="MLflow; SQLite in run.out when absent")
    experiment: str = "swav"
    model: str | None = Field(None, pattern=NAME, description="registered model; the run's name when absent")


BESIDE_RUNS = ("mlartifacts", *(f"mlflow.db{end}" for end in ("", "-journal", "-wal", "-shm")))  # of tracking


class Run(_Section):
    """Does not change results."""

    name: str | None = Field(None, pattern=NAME)
    out: str | None = Field(None, description="folder of the runs; SWAV_OUT or ./runs when absent")

    @field_validator("name")
    @classmethod
    def _free(cls, name: str | None) -> str | None:
        if name and name.lower() in BESIDE_RUNS:
            raise ValueError("tracking keeps something of this name beside the runs; take another one")
        return name


class Config(_Section):
    seed: int = Field(31, ge=0, lt=2**63)
    data: Data = Data()
    views: dict[str, ViewGroup] = {
        "large": ViewGroup(size=224, count=2, scale=(0.14, 1.0)),
        "small": ViewGroup(size=96, count=6, scale=(0.05, 0.14)),
    }
    model: Model = Model()
    method: Method = Method()
    train: Train = Train()
    tracking: Tracking = Tracking()
    run: Run = Run()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.train.batch % self.data.row_size:
            raise ValueError(
                f"train.batch={self.train.batch} must be a multiple of data.row_size={self.data.row_size}: a step is a whole number of rows"
            )
        if self.model.normalisation == "row" and self.data.row_size * min((g.count for g in self.views.values()), default=2) < 2:
            raise ValueError(
                "data.row_size=1 leaves batch normalisation a single view of some group, which has no variance: "
                "take data.row_size=2 or more, or model.normalisation=step"
            )
        if self.train.workers > self.rows_per_step:
            raise ValueError(
                f"train.workers={self.train.workers} is more than the {self.rows_per_step} rows of a step "
                f"(train.batch / data.row_size): lower data.row_size or take fewer workers"
            )
        if self.model.normalisation == "step" and self.train.accumulate == "recompute":
            raise ValueError(
                "model.normalisation=step needs all rows of a step at once, so it does not go with train.accumulate=recompute: "
                "take model.normalisation=row, or more workers and train.accumulate=hold"
            )
        if self.train.compile and self.model.activation_checkpointing:
            raise ValueError(
                "train.compile makes activations again by itself, and does not go with model.activation_checkpointing: take one of them"
            )
        if self.train.shard == "fsdp2":
            self._can_be_split()
        if sum(g.count for g in self.views.values()) < 2:
            raise ValueError("views: at least two views are needed to predict one from another")
        first, assigned = next(iter(self.views.values())).count, self.method.assign_views
        if not assigned or min(assigned) < 0 or max(assigned) >= first or len(set(assigned)) < len(assigned):
            raise ValueError(f"method.assign_views must name views of the first group of views, each once, from 0 to {first - 1}")
        if self.method.queue_length and self.method.queue_length < self.train.batch:
            raise ValueError(
                f"method.queue_length={self.method.queue_length} must be 0 or at least train.batch={self.train.batch}"
            )
        return self

    def _can_be_split(self) -> None:
        if self.rows_per_step % self.train.workers:
            raise ValueError(
                f"train.shard=fsdp2 needs the {self.rows_per_step} rows of a step shared out evenly, and train.workers="
                f"{self.train.workers} does not divide them: take a number of workers that does, or train.shard=none"
            )
        if self.train.compile or self.train.precision == "fp16":
            raise ValueError("train.shard=fsdp2 goes neither with train.compile nor with train.precision=fp16: take fp32 or bf16")

    @property
    def rows_per_step(self) -> int:
        return self.train.batch // self.data.row_size

    def steps(self, samples: int) -> int:
        """Steps of the run over an index of `samples` samples."""
        if self.train.steps is not None:
            return self.train.steps
        if self.train.images is not None:
            return max(1, self.train.images // self.train.batch)
        rows_per_epoch = -(-(self.data.samples_per_epoch or samples) // self.data.row_size)
        steps = max(1, int((self.train.epochs or 1) * rows_per_epoch) // self.rows_per_step)
        return min(steps, samples // self.train.batch) if self.data.one_pass and not self.data.mixed else steps

    def epoch(self, step: int, samples: int) -> int:
        """Epoch of the first row of `step`; -1 before the first step. Of the plan: all samples, whatever train.epochs counts."""
        return step * self.rows_per_step // -(-samples // self.data.row_size)

    def digest(self) -> str:
        """Identity of what changes results: two configurations with one digest learn the same weights."""
        tree = self.model_dump(mode="json")
        tree["views"] = list(tree["views"].items())  # their order says which are assigned, and whose randomness is whose
        for free in ("tracking", "run"):
            del tree[free]
        for (*path, key), default in _NEWER.items():
            within = functools.reduce(dict.__getitem__, path, tree)
            if within[key] == default:
                del within[key]
        for section, names in _FREE.items():
            for name in names:
                del tree[section][name]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


_NEWER = {
    ("data", "streams"): 1,
    ("data", "samples_per_epoch"): None,
    ("data", "one_pass"): False,
    ("train", "optimiser", "clip_rate"): False,
}
"""Settings and what they were before they could be set: runs from then keep their digest."""

_FREE = {
    "data": (
        "sources",
        "index",
        "exclude",
        "allow_pipe",
        "tasks",
        "segment",
        "node_labels",
        "sample_log",
        "max_quarantine_fraction",
    ),
    "model": ("activation_checkpointing",),
    "train": (
        "accumulate",
        "shard",
        "compile",
        "deterministic",
        "workers",
        "threads",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
    ),
}
