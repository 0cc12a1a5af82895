"""Trains every method for fifty steps on a small network: `python ranks.py RANK SIZE STORE FOLDER`, one process per rank.

Each method's run is FOLDER/<case>, with batch statistics of a row, or of the step for `<case>_over_step`. Rank 0 writes
FOLDER/calls.json, the number of collectives after each step. Runs are float64: k-means, nearest neighbours and labels are
discrete decisions, which rounding in float32 eventually changes, and from then on two runs differ. For the same reason the
network is smooth (tanh).

Two processes also write FOLDER/isolated/<case>, the runs of ranks whose collectives exchange nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from swav_platform.config import Config
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.methods.comm import Comm, LocalComm
from swav_platform.models.initialise import initialise
from swav_platform.models.normalisation import RowBatchNorm
from swav_platform.rows.layout import Costs
from swav_platform.training import learner as learner_module
from swav_platform.training import loop
from swav_platform.training.collectives import joined

STEPS, SAMPLES, R, S = 50, 298, 4, 8  # 75 rows per epoch, so that a step crosses its end
OVER_STEP = "_over_step"
ISOLATED_STEPS = 14  # the second epoch begins in them

CASES: dict[str, dict[str, Any]] = {
    "swav": {"queue_length": 96, "queue_start": 3, "freeze_prototypes": 4},
    "swav_heads": {"prototypes": [12, 7], "prior": "power_law", "freeze_prototypes": 0, "queue_length": 64, "queue_drift": 3},
    "deepcluster": {"prototypes": [12, 7, 12]},
    "sela": {"prototypes": [12, 7], "freeze_prototypes": 12, "bank_iterations": 40},
    "mean_shift": {"neighbours": 3, "bank_length": 100, "momentum": 0.9},
    "simclr": {},
}


def config(case: str, size: int = 1, steps: int = STEPS) -> Config:
    """With three ranks, rows are recomputed instead of held, where supported. That must not change any loss."""
    over_step, case = case.endswith(OVER_STEP), case.removesuffix(OVER_STEP)
    views = {
        "large": {"size": 12, "count": 2, "scale": (0.3, 1)},
        "small": {"size": 8, "count": 1, "scale": (0.1, 1)},
    }
    return Config.model_validate(
        {
            "data": {"row_size": R, "photometric": "worker"},
            "views": views,
            "model": {
                "name": "resnet18",
                "projection_hidden": 16,
                "projection_dim": 8,
                "normalisation": "step" if over_step else "row",
            },
            "method": {
                "prototypes": 12,
                "freeze_prototypes": 2,
                "name": case.removesuffix("_heads"),
                **CASES.get(case, {}),
            },
            "train": {
                "batch": S * R,
                "steps": steps,
                "threads": 1,
                "accumulate": "recompute" if size == 3 and not over_step else "hold",
                "checkpoint_every": 23,
                "optimiser": {"name": "sgd", "warmup_steps": 5, "weight_decay": 1e-4, "lr": 0.05, "start_lr": 0.01},
            },
        }
    )


class Smooth(nn.Module):
    feature_dim = 16

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 16, 3, 1, 1, bias=False)
        self.layers = nn.Sequential(first, RowBatchNorm(8), nn.Tanh(), second, nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


def row(number: int, settings: Config) -> Any:
    """A row of synthetic images: another order in each epoch, and noise of its own on each view."""
    position = number * R + np.arange(R)
    epoch, place = np.divmod(position, 75 * R)
    sample = (place * 113 + epoch * 59) % SAMPLES
    weight = np.where(position % 41 == 7, 0, 1).astype(np.float32)  # some are unreadable
    views = []
    for size, count in ((group.size, group.count) for group in settings.views.values()):
        pixels = np.empty((count, R, size, size, 3))
        for i, (s, p) in enumerate(zip(sample, position, strict=True)):
            image = np.random.default_rng(s).integers(0, 256, (1, 2, 2, 3)).repeat(size // 2, 1).repeat(size // 2, 2)
            pixels[:, i] = image + np.random.default_rng([p, size]).normal(0, 40, (count, size, size, 3))
        views.append(torch.from_numpy(pixels / 64 - 2).flatten(0, 1).permute(0, 3, 1, 2))
    outcome = np.full(R, Outcome.OK, np.uint8)
    unknown = np.zeros(0, np.uint8)  # hashes and looks of the images
    return SimpleNamespace(
        row=number,
        sample=sample,
        weight=weight,
        views=views,
        outcome=outcome,
        events=[],
        costs=Costs(),
        content=unknown,
        look=unknown,
    )


class Isolated:
    """A rank whose collectives return its own argument."""

    def __init__(self, comm: Comm) -> None:
        self.rank, self.size = comm.rank, comm.size

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x

    max = gather_in_order = sum


def isolate(method: Any) -> None:
    """Codes and assignments of `method` use each rank's own rows only."""
    for name in ("targets", "start_epoch"):
        original = getattr(method, name)
        setattr(method, name, lambda given, comm, original=original: original(given, Isolated(comm)))


def train(case: str, folder: Path, comm: Comm, isolated: bool = False, **options: Any) -> loop.TrainResult:
    """isolated: codes (or, for `_over_step`, batch statistics) use the rank's own rows only."""
    over_step = case.endswith(OVER_STEP)
    settings = config(case, comm.size, ISOLATED_STEPS if isolated else STEPS)

    def rows(first: int, last: int) -> Iterator[Any]:
        return (row(k, settings) for k in range(first, last) if (k - first) % comm.size == comm.rank)

    def encoder(_: Any, seed: int) -> Smooth:
        made = Smooth()
        initialise(made, seed, "encoder")
        return made

    build, build_encoder = loop.build_learner, learner_module.build_encoder
    across = loop.normalisation.across

    def build_double(*args: Any) -> Any:
        learner = build(*args)
        learner.network.double()
        if isolated and not over_step:
            isolate(learner.method)
        return learner

    loop.build_learner = build_double
    learner_module.build_encoder = encoder  # type: ignore[assignment]
    if isolated and over_step:
        loop.normalisation.across = lambda network, ranks: across(network, Isolated(ranks))
    given = {"samples": SAMPLES, "index_digest": "i", "rows": rows, "prepare": lambda r: r.views, "resume": False}
    try:
        return loop.train(settings, comm=comm, run_dir=folder / case, **(given | options))
    finally:
        loop.build_learner, learner_module.build_encoder = build, build_encoder
        loop.normalisation.across = across


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def resume(case: str, folder: Path, comm: Comm) -> None:
    """Resumes the run in `folder` from its checkpoint of step 23, in the middle of an epoch."""
    if comm.rank == 0:
        for path in (folder / case / "checkpoints").iterdir():
            if path.name != "step-000000023":
                shutil.rmtree(path)
    comm.sum(torch.zeros(1))  # wait for rank 0
    train(case, folder, comm, resume=True)


def cases(size: int) -> list[str]:
    """Four processes take turns on few cores, so that they only train with batch statistics of a row."""
    return list(CASES) if size == 4 else [*CASES, *(case + OVER_STEP for case in CASES)]


def main(rank: int, size: int, store: str, folder: Path) -> None:
    calls: dict[str, list[dict[str, int]]] = {}
    with joined(rank, size, f"file://{store}") if size > 1 else nullcontext(LocalComm()) as comm:
        for case in cases(size):
            seen = calls[case] = []
            train(case, folder, comm, on_progress=lambda _: seen.append(dict(getattr(comm, "calls", {}))))  # noqa: B023
            if size == 2:
                train(case, folder / "isolated", comm, isolated=True)
            if (folder / "alone" / case).is_dir():
                resume(case, folder / "alone", comm)
    if rank == 0:
        (folder / "calls.json").write_text(json.dumps(calls))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
