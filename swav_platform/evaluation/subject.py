"""The model that is evaluated, and the labelled images that it is evaluated on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from swav_platform import config
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.evaluation.features import subset
from swav_platform.models.encoders import build_encoder
from swav_platform.models.package import Package, load_package, package_digest
from swav_platform.runs.folder import RunFolder

log = logging.getLogger("swav")


@dataclass(frozen=True)
class Subject:
    """A loaded package and the settings of its run. run: the run that it belongs to. out: folder of results and features."""

    package: Package
    digest: str
    seed: int
    images: config.ImagePolicy
    run: RunFolder | None
    out: Path
    device: str = "cpu"

    @property
    def name(self) -> str:
        return self.run.name if self.run else str(self.package.meta["name"])

    @property
    def method(self) -> str:
        return str(self.run.config().method.name) if self.run else str(self.package.meta.get("source", {}).get("kind", "package"))

    @property
    def input_size(self) -> int:
        return int(self.package.meta["input_size"])

    @property
    def model(self) -> config.Model:
        return config.Model.model_validate(self.package.meta["model"])

    def untrained(self) -> nn.Module:
        """The same encoder at random initialisation."""
        return build_encoder(self.model, self.seed)


def subject(package: Path, run: RunFolder | None, out: Path, device: str = "cpu") -> Subject:
    """Loads a package to evaluate. Seed and image limits are those of its run, or the defaults."""
    settings = run.config() if run else config.Config()
    return Subject(load_package(package), package_digest(package), settings.seed, settings.data.images, run, out, device)


@dataclass(frozen=True)
class Side:
    """Labelled images of one side, `train` or `test`. numbers: the chosen samples, in index order."""

    name: str
    pattern: str
    label: str
    index: Index
    numbers: list[int]


def open_side(folder: Path, name: str, pattern: str, label: str, size: int | None, seed: int) -> Side:
    """Indexes `pattern` below `folder` with labels. size: images to draw by `seed`; all if None."""
    where = folder / name
    build_index(expand([pattern]), where, label=label)
    index = Index.open(where)
    return Side(name, pattern, label, index, subset(index, size, seed))


def warn_of_shared_shards(train: Side, test: Side) -> None:
    same = sorted({file.url for file in train.index.shards.files()} & {file.url for file in test.index.shards.files()})
    if same:
        log.warning(
            f"{len(same)} shards are on both sides, for example {same[0]}. Images that are used for training and for testing make "
            f"scores too high. Use disjoint shards."
        )
