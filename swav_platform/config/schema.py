"""The configuration of a run: all sections, and the rules between them."""

from __future__ import annotations

import hashlib
import json

from pydantic import field_validator, model_validator

from swav_platform.config.data import Data
from swav_platform.config.learning import Method, Model, Train
from swav_platform.config.setting import Section, setting, what_changes_results
from swav_platform.config.views import ViewGroup
from swav_platform.errors import UsageError


class ConfigError(UsageError):
    """Invalid configuration. The message is one paragraph for the user."""


NAME = r"^[\w&&[^_]][\w. -]*$"  # of a run or a model: a folder and a part of models:/ URIs. \w: letters and digits of any script
NAME_BYTES = 200  # in UTF-8; file systems take 255, and locks, logs and jobs add to the name

BESIDE_RUNS = ("mlartifacts", *(f"mlflow.db{end}" for end in ("", ".lock", "-journal", "-wal", "-shm")))
"""What tracking keeps in the folder of the runs."""


class Tracking(Section):
    uri: str | None = setting(None, "MLflow server; SQLite in run.out when null", changes_results="no")
    experiment: str = setting("swav", "MLflow experiment", changes_results="no", min_length=1)
    model: str | None = setting(
        None, "name of the registered model; the run's name when null", changes_results="no", pattern=NAME
    )
    patience: float = setting(
        60, "time that a finished run waits for a server that does not answer", unit="s", changes_results="no", ge=0
    )
    log_checkpoints: bool = setting(
        False, "upload the kept checkpoints and the ledger's counts to MLflow when the run is finished", changes_results="no"
    )
    system_metrics: bool = setting(
        False, "record CPU, memory, disk, network and GPU of each node in MLflow", changes_results="no"
    )

    @field_validator("model", "experiment")
    @classmethod
    def _is_short(cls, name: str | None) -> str | None:
        return _short(name)


class Run(Section):
    name: str | None = setting(None, "name of the run", changes_results="no", pattern=NAME)
    out: str | None = setting(None, "folder or s3:// URL of the runs; SWAV_OUT, or else ./runs, when null", changes_results="no")

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str | None) -> str | None:
        if name and name.lower() in BESIDE_RUNS:
            raise ValueError("this name is reserved for the files of tracking; choose another name")
        return _short(name)


def _short(name: str | None) -> str | None:
    if name and len(name.encode()) > NAME_BYTES:
        raise ValueError(f"this name has {len(name.encode())} bytes in UTF-8; choose one of at most {NAME_BYTES}")
    return name


def _words(workers: object) -> str:
    return str(list(workers)) if isinstance(workers, tuple) else str(workers)


class Config(Section):
    seed: int = setting(31, "seed of all random numbers: stream, views and initial weights", ge=0, lt=2**63)
    data: Data = setting(Data(), "shards and the stream of rows")
    views: dict[str, ViewGroup] = setting(
        {
            "large": ViewGroup(size=224, count=2, scale=(0.14, 1.0)),
            "small": ViewGroup(size=96, count=6, scale=(0.05, 0.14)),
        },
        "groups of views by name; their order is part of the recipe",
    )
    model: Model = setting(Model(), "encoder and projection head")
    method: Method = setting(Method(), "training objective")
    train: Train = setting(Train(), "steps, workers and checkpoints")
    tracking: Tracking = setting(Tracking(), "MLflow", changes_results="no")
    run: Run = setting(Run(), "name and place of the run", changes_results="no")

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        self._check_rows()
        self._check_step()
        self._check_views()
        return self

    def _check_rows(self) -> None:
        """Rows of a step against batch, workers and batch normalisation."""
        batch, row_size = self.train.batch, self.data.row_size
        if batch % row_size:
            raise ValueError(
                f"train.batch={batch} must be a multiple of data.row_size={row_size}, because a step is a whole number of rows"
            )
        fewest = row_size * min((group.count for group in self.views.values()), default=2)
        if self.model.normalisation == "row" and fewest < 2:
            raise ValueError(
                "data.row_size=1 with one view in a group gives batch normalisation a single image, which has no variance; "
                "set data.row_size=2 or more, or model.normalisation=step"
            )
        if self.most_workers > self.rows_per_step:
            raise ValueError(
                f"train.workers={self.most_workers} exceeds the {self.rows_per_step} rows of a step "
                f"(train.batch / data.row_size); lower data.row_size or train.workers"
            )

    def _check_step(self) -> None:
        """Options of a training step that exclude each other."""
        train = self.train
        if self.model.normalisation == "step" and train.accumulate == "recompute":
            raise ValueError(
                "model.normalisation=step needs all rows of a step at once, which train.accumulate=recompute rules out; "
                "set model.normalisation=row, or train.accumulate=hold with more workers"
            )
        if train.compile is True and self.model.activation_checkpointing:
            raise ValueError(
                "train.compile already recomputes activations and excludes model.activation_checkpointing; disable one of them"
            )
        if not any(map(self.allows, range(self.fewest_workers, self.most_workers + 1))):
            raise ValueError(
                f"train.shard=fsdp2 needs the same number of rows on each worker, but train.workers={_words(train.workers)} does not "
                f"divide the {self.rows_per_step} rows of a step; change train.workers, or set train.shard=none"
            )
        if train.shard == "fsdp2" and (train.compile is True or train.precision == "fp16"):
            raise ValueError(
                "train.shard=fsdp2 supports neither train.compile nor train.precision=fp16; use fp32 or bf16 without compile"
            )

    def _check_views(self) -> None:
        """Views against the method's targets and queue."""
        if sum(group.count for group in self.views.values()) < 2:
            raise ValueError("views: at least two views are needed to predict one from another")
        first, assigned = next(iter(self.views.values())).count, self.method.assign_views
        if not assigned or min(assigned) < 0 or max(assigned) >= first or len(set(assigned)) < len(assigned):
            raise ValueError(f"method.assign_views must list distinct views of the first group, from 0 to {first - 1}")
        if self.method.queue_length and self.method.queue_length < self.train.batch:
            raise ValueError(
                f"method.queue_length={self.method.queue_length} must be 0 or at least train.batch={self.train.batch}"
            )

    @property
    def rows_per_step(self) -> int:
        return self.train.batch // self.data.row_size

    @property
    def fewest_workers(self) -> int:
        workers = self.train.workers
        return workers if isinstance(workers, int) else 1 if workers == "auto" else workers[0]

    @property
    def most_workers(self) -> int:
        workers = self.train.workers
        return workers if isinstance(workers, int) else self.rows_per_step if workers == "auto" else workers[1]

    def allows(self, workers: int) -> bool:
        """Whether a step can be divided over that many workers."""
        return self.train.shard == "none" or self.rows_per_step % workers == 0

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
        """Epoch of the plan, over all samples, of the first row of `step`; -1 before the first step."""
        return step * self.rows_per_step // -(-samples // self.data.row_size)

    def digest(self) -> str:
        """Identity of the results: two configurations with the same digest learn the same weights, up to rounding."""
        tree = what_changes_results(self, self.model_dump(mode="json"))
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
