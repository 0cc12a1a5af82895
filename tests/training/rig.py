"""A small run over rows made up from their numbers: for tests in this process, and as a program, one process a rank.

`python rig.py RANK SIZE STORE FOLDER small` trains to the end in FOLDER/whole and FOLDER/short and goes on with the run in FOLDER/broken;
rank 0 writes FOLDER/calls.json, the collectives so far after each step of the first, each rank what it gathered.
`... FOLDER split` trains with split weights, in FOLDER/split_<name>, and `... FOLDER resnet18` a ResNet-18 in FOLDER/resnet18_<scope>.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swav_platform.config import Config, from_tree
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.images.views import photometric
from swav_platform.methods.comm import Comm, LocalComm
from swav_platform.rows.layout import Row, RowLayout
from swav_platform.training import learner as learner_module
from swav_platform.training import loop
from swav_platform.training.collectives import gather_bytes, joined
from swav_platform.training.optimisation.sharding import own

STEPS, SAMPLES = 10, 1000


def config(**overrides: Any) -> Config:
    """10 steps of 8 rows of 4 images, a network with batch norm, a queue that is used from step 4 on."""
    tree: dict[str, Any] = {
        "data": {"row_size": 4, "photometric": "worker"},
        "views": {"large": {"size": 16, "count": 2, "scale": (0.3, 1)}, "small": {"size": 8, "count": 2, "scale": (0.1, 1)}},
        "model": {"name": "resnet_tiny", "stem": "small", "projection_hidden": 16, "projection_dim": 8},
        "method": {"prototypes": 12, "queue_length": 64, "queue_start": 2, "freeze_prototypes": 2},
        "train": {"batch": 32, "steps": STEPS, "threads": 1, "log_every": 3, "checkpoint_every": 4},
    }
    tree["train"]["optimiser"] = {"name": "sgd", "lr": 0.01, "start_lr": 0.001, "warmup_steps": 3, "weight_decay": 1e-4}
    for key, value in overrides.items():
        node, path = tree, key.split("__")
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return from_tree(tree)


def _samples(settings: Config) -> int:
    return settings.data.samples_per_epoch or SAMPLES


def row(settings: Config, number: int, bad: tuple[int, ...] = ()) -> Row:
    """Row `number`: pixels from its number alone; positions in `bad` have an unreadable sample of their own."""
    layout, r = RowLayout.of(settings), settings.data.row_size
    packed = np.zeros(layout.nbytes, np.uint8)
    position = number * r + np.arange(r)
    refused = np.isin(position, bad)
    events = [Event(int(p), 0, int(p), f"k{p}", "shard-7.tar", Outcome.CORRUPT, "cut", None) for p in position[refused]]
    outcome, weight = np.where(refused, Outcome.CORRUPT, Outcome.OK).astype(np.uint8), np.ones(r, np.float32)
    names = {"key": [f"k{p}" for p in position], "shard": ["shard-7.tar"] * r, "stand_in_for": [None] * r}
    views = {"views": layout.views(packed), "params": layout.params(packed), "packed": packed, "layout": layout}
    for pixels in views["views"]:
        pixels[...] = _patches(number, r, pixels.shape[0], pixels.shape[2])
    return Row(
        row=number,
        position=position,
        sample=position % _samples(settings),
        outcome=outcome,
        weight=weight,
        events=events,
        **names,
        **views,
    )


def _patches(number: int, r: int, views: int, size: int) -> np.ndarray:
    """uint8 [views, r, size, size, 3]: each image has four patches of colour of its own, each view some noise of its own."""
    rng = np.random.default_rng([number, size])
    patches = np.random.default_rng(number).integers(0, 256, (1, r, 2, 2, 3)).repeat(size // 2, 2).repeat(size // 2, 3)
    return (patches + rng.integers(-40, 40, (views, r, size, size, 3))).clip(0, 255).astype(np.uint8)


def rows(settings: Config, comm: Comm, stop: int | None = None, bad: tuple[int, ...] = ()) -> Callable[[int, int], Iterator[Row]]:
    """This rank's stream; at row `stop` the whole run breaks down."""

    def stream(first: int, last: int) -> Iterator[Row]:
        for k in range(first, last):
            if stop is not None and k >= stop:
                raise ConnectionError("the machine is gone")
            if (k - first) % comm.size == comm.rank:
                yield row(settings, k, bad)

    return stream


def train(settings: Config, folder: Path, comm: Comm | None = None, double: bool = False, **options: Any) -> loop.TrainResult:
    """double: in float64, in which no rounding turns a ReLU over, so that runs can be compared closely."""
    comm = comm or LocalComm()
    stream = rows(settings, comm, options.pop("stop", None), options.pop("bad", ()))
    given = {"samples": _samples(settings), "index_digest": "i", "rows": stream, "resume": False} | options
    if not double:
        return loop.train(settings, comm=comm, run_dir=folder, **given)
    build, shard, given["prepare"] = loop.build_learner, learner_module.shard, in_float64

    def build_double(*args: Any) -> Any:
        learner = build(*args)
        if settings.train.shard == "none":  # else it was, before it was split
            learner.network.double()
        return learner

    try:
        loop.build_learner = build_double
        learner_module.shard = lambda network, *rest: shard(network.double(), *rest)
        return loop.train(settings, comm=comm, run_dir=folder, **given)
    finally:
        loop.build_learner, learner_module.shard = build, shard


def in_float64(given: Row) -> list[torch.Tensor]:
    return [photometric.normalise(torch.from_numpy(views)).double() for views in given.views]


def short() -> Config:
    """Five steps in float32, the queue in use from step 2 on; small steps, so that roundings do not grow."""
    return config(train__steps=5, method__queue_start=0, train__optimiser__lr=1e-4, train__optimiser__start_lr=1e-5)


WAYS = {
    "over_step": {"model__normalisation": "step"},
    "recompute": {"train__accumulate": "recompute"},
    "checkpointing_over_step": {"model__normalisation": "step", "model__activation_checkpointing": True},
}


def way(name: str) -> Config:
    """Four steps, the queue in use from step 3 on."""
    return config(train__steps=4, method__queue_start=1, **WAYS[name])


SPLIT: dict[str, dict[str, Any]] = {
    "sgd": {"train__clip": 0.5, "train__ema": 0.5},
    "lars": {"train__optimiser__name": "lars", "train__optimiser__lr": 0.01, "train__accumulate": "recompute"},
    "over_step": {"model__normalisation": "step", "model__activation_checkpointing": True, "train__optimiser__name": "adamw"},
    "mean_shift": {"method__name": "mean_shift", "method__neighbours": 2, "method__bank_length": 64},
    "forward_only": {"method__name": "sela", "data__samples_per_epoch": 64},  # in the first two steps
}


def split(name: str, shard: str = "fsdp2") -> Config:
    """Five steps, weights split or not. Checkpoints after four and five."""
    given = {"train__optimiser__lr": 1e-4, "train__optimiser__start_lr": 1e-5} | SPLIT[name]
    return config(train__steps=5, method__queue_start=0, train__shard=shard, **given)


def train_split(name: str, folder: Path, comm: Comm | None = None, shard: str = "fsdp2", **options: Any) -> loop.TrainResult:
    """In float32 where roundings do not grow."""
    return train(split(name, shard), folder, comm, double=name in ("over_step", "mean_shift", "forward_only"), **options)


RATES = {"row": 0.02, "step": 0.005}
"""Batch norm over the step joins pixels of all rows, and its roundings grow faster."""


def resnet18(scope: str, lr: float | None = None) -> Config:
    """Ten steps of a real ResNet-18 in float32."""
    lr = lr or RATES[scope]
    views = {"views__large__size": 32, "views__small__size": 24, "views__small__count": 1}
    model = {"model__name": "resnet18", "model__stem": "imagenet", "model__normalisation": scope}
    rates = {"train__optimiser__name": "lars", "train__optimiser__lr": lr, "train__optimiser__start_lr": lr / 2}
    return config(method__queue_length=0, train__checkpoint_every=10, **views, **model, **rates)


def initial(settings: Config) -> dict[str, torch.Tensor]:
    """Weights before the first step."""
    network = loop.build_learner(settings, torch.device("cpu"), 1).network
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main(rank: int, size: int, store: str, folder: Path) -> None:
    with joined(rank, size, f"file://{store}") as comm:
        seen: list[dict[str, int]] = []
        train(config(), folder / "whole", comm, double=True, on_progress=lambda _: seen.append(dict(comm.calls)))
        train(config(), folder / "broken", comm, double=True, resume=True)
        train(short(), folder / "short", comm)
        for name in WAYS:
            train(way(name), folder / name, comm, double=True)
        uneven = comm.gather_in_order(torch.arange(rank + 1) + 10 * rank).tolist()
        lengths = [len(part) for part in gather_bytes(b"x" * (rank * 3), comm)]
        (folder / f"gathered-{rank}.json").write_text(json.dumps([uneven, lengths]))
        if rank == 0:
            (folder / "calls.json").write_text(json.dumps(seen))


def main_split(rank: int, size: int, store: str, folder: Path) -> None:
    with joined(rank, size, f"file://{store}") as comm:
        for name in SPLIT:
            train_split(name, folder / f"split_{name}", comm)
        train_split("sgd", folder / "split_later", comm, resume=True)
        network = loop.build_learner(split("sgd"), torch.device("cpu"), size).network
        torch.save({name: own(p.detach()).clone() for name, p in network.named_parameters()}, folder / f"held-{rank}.pt")


def main_resnet18(rank: int, size: int, store: str, folder: Path) -> None:
    with joined(rank, size, f"file://{store}") as comm:
        for scope in ("row", "step") if size == 2 else ("row",):  # tests/methods compare scope `step` over three, too
            train(resnet18(scope), folder / f"resnet18_{scope}", comm)


if __name__ == "__main__":
    todo = {"small": main, "split": main_split, "resnet18": main_resnet18}[sys.argv[5]]
    todo(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
