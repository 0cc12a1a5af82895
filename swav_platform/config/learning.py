"""Settings of the model, the method, the optimiser and the training steps."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from swav_platform.config.setting import Section, setting


class Model(Section):
    name: str = setting("resnet50", "encoder: a built-in name, or timm/NAME")
    stem: Literal["imagenet", "small"] = setting(
        "imagenet", "first layers; `small` is a 3x3 convolution without pooling (ResNet, RegNet)"
    )
    stem_stride: Literal[1, 2] = setting(1, "stride of the small stem")
    projection_hidden: int = setting(2048, "width of the projection head's hidden layer", ge=1)
    projection_dim: int = setting(128, "size of the projected features", ge=2)
    projection_norm: Literal["batch", "none"] = setting(
        "batch", "normalisation of the projection head's hidden layer; none as published for RN50w5", newer=True
    )
    normalisation: Literal["row", "step"] = setting(
        "row", "batch statistics: of one row, or of all rows of the step on all workers"
    )
    init: str | None = setting(None, "initial encoder weights: a .safetensors or .pth file, or the folder of a model package")
    init_heads: bool = setting(False, "also take projection head and prototypes from the model package model.init", newer=True)
    activation_checkpointing: bool = setting(
        False, "recompute the activations inside blocks in the backward pass instead of keeping them", changes_results="rounding"
    )


class Method(Section):
    """Defaults are those of each method's paper. docs/methods.md lists which options a method reads."""

    name: str = setting("swav", "swav, deepcluster, sela, mean_shift, simclr, or package.module:Class")
    assign_views: tuple[int, ...] = setting((0, 1), "views of the first group that give codes, memories or momentum targets")
    temperature: float = setting(0.1, "temperature of the softmax over prototypes or images", gt=0)

    prototypes: int | tuple[int, ...] = setting(3000, "number of prototypes; a list makes several heads")
    learn_prototypes: bool = setting(True, "train the prototypes; when false they keep their initial values")
    freeze_prototypes: int = setting(313, "first steps in which prototypes do not change", unit="steps", ge=0)

    epsilon: float = setting(0.05, "entropy weight of the codes; larger values make softer codes", gt=0)
    iterations: int = setting(3, "Sinkhorn iterations over the step", ge=1)
    hard_codes: bool = setting(False, "use one-hot codes: the largest entry only")
    prior: Literal["uniform", "power_law"] = setting("uniform", "target masses of the prototypes")
    prior_exponent: float = setting(0.25, "power law: prototype k has mass proportional to k to minus this exponent", ge=0)
    queue_length: int = setting(0, "queued features per assignment view, over all workers; 0 for no queue", unit="features", ge=0)
    queue_start: int = setting(0, "first step whose features enter the queue", unit="steps", ge=0)
    queue_drift: float | None = setting(
        None, "use the queue only while features drift less than this; 1 is the drift of sampling noise", gt=0
    )

    kmeans_iterations: int = setting(10, "deepcluster: k-means iterations per epoch", ge=1)
    bank_iterations: int = setting(1000, "sela: most Sinkhorn iterations over the memory", ge=1)
    bank_tolerance: float = setting(0.1, "sela: summed error of the samples' masses at which the iterations stop", ge=0)

    momentum: float = setting(0.99, "mean_shift: decay of the momentum network per step", ge=0, le=1)
    neighbours: int = setting(5, "mean_shift: neighbours of each target", ge=1)
    bank_length: int = setting(
        128_000, "mean_shift: embeddings kept per assignment view, over all workers", unit="embeddings", ge=1
    )

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of prototypes of each head."""
        return (self.prototypes,) if isinstance(self.prototypes, int) else self.prototypes

    @model_validator(mode="after")
    def _ranges(self) -> Method:
        if not self.heads or min(self.heads) < 2:
            raise ValueError(f"prototypes must be at least 2 in each head, got {self.prototypes}")
        return self


class Optimiser(Section):
    name: Literal["lars", "sgd", "adamw"] = setting("lars", "optimiser")
    lr: float = setting(4.8, "learning rate after the warm-up", gt=0)
    final_lr: float = setting(0.0048, "learning rate at the end of the run", ge=0)
    warmup_steps: int = setting(3130, "length of the linear warm-up", unit="steps", ge=0)
    warmup_images: int | None = setting(
        None, "length of the warm-up in images, rounded down to whole steps; replaces warmup_steps", unit="images", ge=0
    )
    start_lr: float = setting(0.3, "learning rate of the first step", ge=0)
    weight_decay: float = setting(1e-6, "weight decay", ge=0)
    momentum: float = setting(0.9, "momentum of lars and sgd", ge=0, lt=1)
    trust: float = setting(0.001, "LARS trust coefficient", gt=0)
    clip_rate: bool = setting(False, "LARS: use the smaller of a layer's adapted rate and the learning rate (LARC)", newer=True)
    exclude_1d: bool = setting(False, "no weight decay and no LARS adaptation for biases and norms")


class Train(Section):
    batch: int = setting(256, "images of a step, over all workers", unit="images", ge=1)
    epochs: float | None = setting(None, "length of the run; one epoch when no length is given", unit="epochs", gt=0)
    images: int | None = setting(None, "length of the run; replaces epochs", unit="images", ge=1)
    steps: int | None = setting(None, "length of the run; replaces images and epochs", unit="steps", ge=1)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = setting(
        "fp32", "precision of the network's forward and backward pass; auto: bf16 on a GPU that has it, else fp32"
    )
    optimiser: Optimiser = setting(Optimiser(), "optimiser and learning rate")
    clip: float | None = setting(None, "largest norm of a step's gradient; longer gradients are scaled down", gt=0)
    ema: float | None = setting(None, "decay per step of averaged weights; the model package gets the averages", gt=0, lt=1)
    accumulate: Literal["hold", "recompute"] = setting(
        "hold",
        "a worker's rows of a step: keep all graphs, or compute the codes first and then run row by row",
        changes_results="rounding",
    )
    shard: Literal["none", "fsdp2"] = setting(
        "none",
        "weights, gradients and optimiser state: whole on each worker, or split over workers",
        changes_results="rounding",
    )
    compile: bool | Literal["auto"] = setting(
        "auto",
        "compile encoders with torch.compile; auto: on a GPU, where no other setting excludes it",
        changes_results="rounding",
    )
    deterministic: bool = setting(False, "use only deterministic kernels (CUDA)", changes_results="rounding")
    workers: int | tuple[int, int] | Literal["auto"] = setting(
        1,
        "training processes: a number; [fewest, most] for as many as the cluster has room for; `auto` for one per GPU, or per node "
        "without GPUs",
        changes_results="rounding",
    )
    device: Literal["auto", "cuda", "cpu"] = setting(
        "auto",
        "where workers compute; `auto` takes GPUs if the cluster has any, and refuses if they are fewer than the workers",
        changes_results="rounding",
    )
    retries: int = setting(
        3,
        "restarts after failures of workers without a new checkpoint in between, before the run stops",
        changes_results="no",
        ge=0,
    )
    hang_timeout: float = setting(
        600.0,
        "time after which a worker that keeps the others waiting is named and the workers restart; a stopped process is named at once",
        unit="seconds",
        changes_results="no",
        ge=30,
    )
    threads: int | None = setting(None, "torch threads per worker; cores / workers when null", changes_results="rounding", ge=1)
    checkpoint_every: int = setting(500, "steps between checkpoints", unit="steps", changes_results="no", ge=1)
    keep_checkpoints: int = setting(3, "number of checkpoints to keep", changes_results="no", ge=1)
    health: Literal["warn", "stop", "rollback"] = setting(
        "warn",
        "what follows when a run is stuck, collapsed, diverging or broken: a warning, its end, or training on from the last healthy "
        "checkpoint with the remedy",
        changes_results="no",
    )
    online_knn: Literal["off", "folder"] = setting(
        "off",
        "kNN accuracy of the features of logged steps, as `health/knn`: `folder` takes the folder of a sample's key as its label; it is "
        "for monitoring and never used for training",
        changes_results="no",
    )
    log_every: int = setting(10, "steps between logged metrics", unit="steps", changes_results="no", ge=1)

    @field_validator("workers")
    @classmethod
    def _is_a_range(cls, workers: int | tuple[int, int] | str) -> int | tuple[int, int] | str:
        fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
        if isinstance(fewest, int) and isinstance(most, int) and not 1 <= fewest <= most:
            raise ValueError("must be 1 or more, or [fewest, most] with 1 ≤ fewest ≤ most, or auto")
        return workers
