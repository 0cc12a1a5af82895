"""What to evaluate: options of each evaluation, and the YAML of `swav evaluate all`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from swav_platform.errors import UsageError


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Knn(_Options):
    """Weighted neighbours: every k with every temperature. The first of each is the figure of the table."""

    k: tuple[int, ...] = Field((20,), min_length=1)
    temperature: tuple[float, ...] = Field((0.1,), min_length=1)


class Linear(_Options):
    """solver: `lbfgs` and `sgd-frozen` on cached features; `sgd` on augmented crops, as published."""

    solver: Literal["lbfgs", "sgd-frozen", "sgd"] = "lbfgs"
    costs: tuple[float, ...] = Field((0.001, 0.01, 0.1, 1.0), min_length=1)
    epochs: int = Field(100, ge=1)
    lr: float = Field(0.3, gt=0)


class Probes(_Options):
    """size: images of each side whose maps are kept, 74 KB each for a ResNet-50; null for all."""

    size: int | None = Field(10_000, ge=1)
    epochs: int = Field(90, ge=1)
    lr: float = Field(0.01, gt=0)


class Svm(_Options):
    """labels: a list file of several labels per image; each image has its one label without."""

    costs: tuple[float, ...] = Field((0.01, 0.1, 1.0, 10.0), min_length=1)
    shots: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 96)
    draws: int = Field(5, ge=1)
    labels: str | None = None


class Clusters(_Options):
    """kmeans: number of clusters; that of the classes of the test images when null."""

    kmeans: int | None = Field(None, ge=2)


class Retrieval(_Options):
    """at: the k of recall@k. queries: most test images that search, drawn by the seed."""

    at: tuple[int, ...] = (1, 5, 10, 100)
    queries: int = Field(2000, ge=1)


class Finetune(_Options):
    epochs: int = Field(30, ge=1)
    trunk_lr: float = Field(0.01, ge=0)
    head_lr: float = Field(0.1, gt=0)


class Semi(_Options):
    """fractions: shares of the labels. lists: file of keys by fraction, instead of a draw. Rates: published for 0.01 and 0.1."""

    fractions: tuple[float, ...] = (0.01, 0.1)
    lists: dict[float, str] = {}
    epochs: int = Field(20, ge=1)
    trunk_lr: float | None = Field(None, ge=0)
    head_lr: float | None = Field(None, gt=0)


class Evaluations(_Options):
    knn: Knn | None = None
    linear: Linear | None = None
    probes: Probes | None = None
    svm: Svm | None = None
    clusters: Clusters | None = None
    retrieval: Retrieval | None = None
    semi: Semi | None = None
    finetune: Finetune | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """`linear:` and `linear: {}` both mean the defaults."""
        return {name: {} if value is None else value for name, value in given.items()} if isinstance(given, dict) else given

    def chosen(self) -> dict[str, Any]:
        """The evaluations to do, by name, in the order of the report."""
        return {name: options for name in type(self).model_fields if (options := getattr(self, name)) is not None}


class Data(_Options):
    """train, test: shard patterns. Sizes: images to draw by the seed; all when null."""

    train: str
    test: str
    label: str = "folder"
    train_size: int | None = Field(None, ge=1)
    test_size: int | None = Field(None, ge=1)
    name: str = ""


class Plan(_Options):
    """seeds: repetitions with other random numbers: the run's seed and those after it. transfer: more data sets, for `linear` and `knn`."""

    data: Data
    evaluations: Evaluations
    transfer: tuple[Data, ...] = ()
    seeds: int = Field(1, ge=1)
    random_init: bool = True


def read_plan(path: Path, **changed: Any) -> Plan:
    """The plan in a YAML file. changed: entries of `data` that replace those of the file, unless None. Raises UsageError."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"{path} can't be read as YAML ({' '.join(str(error).split())[:200]}). Name a file of configs/evaluate."
        ) from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is not a mapping with `data` and `evaluations`. Start from a file of configs/evaluate.")
    data = {**(tree.get("data") or {}), **{name: value for name, value in changed.items() if value is not None}}
    return checked({**tree, "data": data}, str(path))


def checked(tree: dict[str, Any], where: str) -> Plan:
    """Raises UsageError that names the wrong entry."""
    try:
        return Plan.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {place}: {first['msg']}. docs/evaluate.md lists the entries.") from None
