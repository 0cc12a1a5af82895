"""Does `swav_platform.training.health` tell broken runs from healthy ones? 12 broken and 6 healthy runs of tiny networks, on two cores.

    python benchmarks/health.py            about 4 minutes
    python benchmarks/health.py --seed 5   siblings: other images, weights and orders

A broken run counts as named if its verdict is the right one before a fifth of the run. A healthy one counts as a false alarm if any of
its verdicts is neither `starting` nor `learning`. Prints one JSON line:

named, broken          Broken runs that were named rightly, and all of them.
false_alarms, healthy  Healthy runs with an alarm, and all of them.
runs                   By name, the first alarm: step, state, reason.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import xxhash
from torch import Tensor

from swav_platform.config import Config, from_tree
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.errors import UserError
from swav_platform.images.views import photometric
from swav_platform.methods.comm import LocalComm
from swav_platform.rows.layout import Row, RowLayout
from swav_platform.runs.health_file import Health, read_health
from swav_platform.training import learner as learner_module
from swav_platform.training import loop

IMAGES, CLASSES, SIDE, STEPS = 2048, 8, 24, 300
ALARMS = ("waiting", "stuck", "collapsed", "diverging", "starved", "broken")


class Images:
    """Smooth images of a few classes, in the order of their classes."""

    def __init__(self, seed: int, *, identical: bool = False, mixed: bool = True) -> None:
        rng = np.random.default_rng(seed)
        templates = _smooth(rng, CLASSES)
        labels = np.arange(IMAGES) * CLASSES // IMAGES
        self.pixels = (0.5 * templates[labels] + 0.5 * _smooth(rng, IMAGES)).astype(np.uint8)
        if identical:
            self.pixels[:] = self.pixels[0]
        self.seed, self.mixed = seed, mixed

    def samples(self, first: int, count: int) -> np.ndarray:
        """The samples at positions first … first + count - 1."""
        position = np.arange(first, first + count)
        if not self.mixed:
            return position % IMAGES
        numbers = [int(p) for p in position]
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(IMAGES) for epoch in {p // IMAGES for p in numbers}
        }
        return np.array([orders[p // IMAGES][p % IMAGES] for p in numbers])


def _smooth(rng: np.random.Generator, count: int) -> np.ndarray:
    rough = torch.from_numpy(rng.uniform(0, 255, (count, 3, 4, 4)))
    large = torch.nn.functional.interpolate(rough, size=SIDE, mode="bicubic").clamp(0, 255)
    return large.permute(0, 2, 3, 1).numpy()


def row(config: Config, images: Images, number: int) -> Row:
    """Views: crops of a random place with a random brightness, mirrored at random; small ones are at half the resolution."""
    layout, size = RowLayout.of(config), config.data.row_size
    packed = np.zeros(layout.nbytes, np.uint8)
    views = layout.views(packed)
    position, rng = number * size + np.arange(size), np.random.default_rng([images.seed, number])
    sample = images.samples(number * size, size)
    for group in views:
        count, side = group.shape[0], group.shape[2]
        step = 2 if side <= SIDE // 3 else 1
        for view in range(count):
            for slot in range(size):
                y, x = rng.integers(0, SIDE - side * step + 1, 2)
                crop = images.pixels[sample[slot], y : y + side * step : step, x : x + side * step : step]
                crop = crop[:, ::-1] if rng.random() < 0.5 else crop
                group[view, slot] = (crop * rng.uniform(0.8, 1.0)).astype(np.uint8)
    names: dict[str, Any] = {"key": [f"k{s}" for s in sample], "shard": ["shard-0.tar"] * size, "stand_in_for": [None] * size}
    outcome, weight = np.full(size, Outcome.OK, np.uint8), np.ones(size, np.float32)
    content = np.array([xxhash.xxh3_64_intdigest(images.pixels[s].tobytes()) for s in sample], np.uint64)
    own: dict[str, Any] = {"views": views, "params": layout.params(packed), "packed": packed, "layout": layout}
    own |= {"look": np.zeros(size, np.uint8), "content": content}
    return Row(row=number, position=position, sample=sample, outcome=outcome, weight=weight, events=[], **names, **own)


@dataclass(frozen=True)
class Case:
    """A run. expected: states that name it rightly; empty for a healthy one. word: in the reason or the remedy of the verdict."""

    name: str
    expected: tuple[str, ...] = ()
    word: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    images: dict[str, bool] = field(default_factory=dict)
    delay: float = 0.0  # seconds that each row takes
    learner: Callable[[Any], None] | None = None  # breaks it before the first step
    prepare: Callable[[int, list[Tensor]], None] | None = None  # breaks pixels
    unnormalised: bool = False


def _freeze(learner: Any) -> None:
    learner.network.requires_grad_(False)


def _large(learner: Any) -> None:
    with torch.no_grad():
        learner.network.projection_head[0].weight.mul_(1e6)


def _nan(number: int, views: list[Tensor]) -> None:
    if number == 21:
        views[0][3, 1, 2, 2] = float("nan")


RATE = 0.03
BROKEN = (
    Case("epsilon too large", ("stuck",), "method.epsilon", {"method.epsilon": 1.0}),
    Case(
        "3000 prototypes, batch 4",
        ("stuck",),
        "method.prototypes",
        {"method.prototypes": 3000, "train.batch": 4, "data.row_size": 4},
    ),
    Case("learning rate x 100", ("diverging", "collapsed"), "train.optimiser.lr", {"train.optimiser.lr": 100 * RATE}),
    Case("queue from step 0", ("stuck",), "method.queue", {"method.queue_length": 2560, "method.queue_start": 0}),
    Case("identical images", ("broken", "stuck"), "images", images={"identical": True}),
    Case("sorted by class, not mixed", ("broken",), "data.window", images={"mixed": False}),
    Case("dead loader", ("starved", "waiting"), "data.tasks", delay=0.25),
    Case("NaN image", ("broken",), "swav replay", prepare=_nan),
    Case("fp16 overflow", ("broken", "diverging"), "train.precision", {"train.precision": "fp16"}, learner=_large),
    Case("features not normalised", ("broken",), "unit length", unnormalised=True),
    Case("mean shift, momentum 1", ("stuck",), "method.momentum", {"method.name": "mean_shift", "method.momentum": 1.0}),
    Case("all weights frozen", ("stuck",), "frozen", learner=_freeze),
)
HEALTHY = (
    Case("swav"),
    Case("swav, late queue", settings={"method.queue_length": 256, "method.queue_start": 150}),
    Case(
        "swav, two heads, AdamW",
        settings={"method.prototypes": [20, 30], "train.optimiser.name": "adamw", "train.optimiser.lr": 1e-3},
    ),
    Case("simclr", settings={"method.name": "simclr"}),
    Case("mean shift", settings={"method.name": "mean_shift", "method.bank_length": 512}),
    Case("deepcluster", settings={"method.name": "deepcluster"}),
)
SIBLINGS = (
    Case("sela", settings={"method.name": "sela"}),
    Case("swav, LARS", settings={"train.optimiser.name": "lars", "train.optimiser.lr": 1.0, "train.optimiser.start_lr": 0.1}),
    Case("swav, small rate", settings={"train.optimiser.lr": 0.01}),
    Case("swav, many prototypes", settings={"method.prototypes": 200}),
    Case("swav, bf16", settings={"train.precision": "bf16", "seed": 5}),
    Case("swav, power law", settings={"method.prior": "power_law"}),
)


def config(case: Case, seed: int) -> Config:
    """A tiny network and STEPS steps of 64 images."""
    tree: dict[str, Any] = {
        "seed": seed,
        "data": {"row_size": 32, "photometric": "worker"},
        "views": {"large": {"size": 16, "count": 2, "scale": (0.3, 1)}, "small": {"size": 8, "count": 2, "scale": (0.1, 1)}},
        "model": {"name": "resnet_tiny", "stem": "small", "stem_stride": 2, "projection_hidden": 64, "projection_dim": 32},
        "method": {"prototypes": 30, "freeze_prototypes": 10},
        "train": {"batch": 64, "steps": STEPS, "threads": 1, "log_every": 5, "checkpoint_every": 20},
    }
    tree["train"]["optimiser"] = {
        "name": "sgd",
        "lr": RATE,
        "start_lr": 0.0,
        "final_lr": 0.0,
        "warmup_steps": 15,
        "weight_decay": 1e-4,
    }
    for key, value in case.settings.items():
        node, path = tree, key.split(".")
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return from_tree(tree)


class Enough(Exception):
    """Ends a broken run after a fifth of its steps."""


def run(case: Case, seed: int, folder: Path, show: bool) -> list[Health]:
    """All verdicts of a run, in order, without repetitions."""
    settings, images, found = config(case, seed), Images(seed, **case.images), list[Health]()

    def rows(first: int, last: int) -> Iterator[Row]:
        for number in range(first, last):
            time.sleep(case.delay)
            yield row(settings, images, number)

    def prepare(given: Row) -> list[Tensor]:
        views = [photometric.normalise(torch.from_numpy(views)) for views in given.views]
        if case.prepare is not None:
            case.prepare(given.row, views)
        return views

    def note() -> None:
        health = read_health(folder)
        if health is not None and (not found or (health.state, health.because) != (found[-1].state, found[-1].because)):
            found.append(health)

    def progress(done: loop.Progress) -> None:
        if show and done.metrics:
            print(
                done.step,
                {k: round(v, 4) for k, v in done.metrics.items() if k.startswith(("health", "train", "data/step", "data/wait"))},
            )
        note()
        if case.expected and done.step >= STEPS // 5:
            raise Enough

    build = learner_module.build_learner

    def built(*arguments: Any) -> Any:
        learner = build(*arguments)
        if case.learner is not None:
            case.learner(learner)
        return learner

    with ExitStack() as stack:
        stack.enter_context(patch.object(loop, "build_learner", built))
        if case.unnormalised:
            stack.enter_context(patch("swav_platform.methods.network.unit", lambda x: 3 * x))
        try:
            given: dict[str, Any] = {
                "samples": IMAGES,
                "index_digest": "i",
                "rows": rows,
                "comm": LocalComm(),
                "run_dir": folder,
                "resume": False,
            }
            loop.train(settings, on_progress=progress, prepare=prepare, **given)
        except Enough:
            pass
        except UserError as error:
            if show:
                print("ended:", error)
    note()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--only", help="runs whose name has this text")
    parser.add_argument("--siblings", action="store_true", help="six other healthy runs instead")
    parser.add_argument("--show", action="store_true", help="print the metrics of logged steps")
    options = parser.parse_args()
    logging.getLogger("swav").setLevel(logging.ERROR)
    counts, told = {"named": 0, "broken": 0, "false_alarms": 0, "healthy": 0}, {}
    for case in SIBLINGS if options.siblings else (*BROKEN, *HEALTHY):
        if options.only and options.only not in case.name:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            verdicts = run(case, options.seed, Path(folder), options.show)
        alarm = next((health for health in verdicts if health.state in ALARMS), None)
        right = [h for h in verdicts if h.state in case.expected and case.word in f"{h.because} {h.do}"]
        if case.expected:
            counts["broken"] += 1
            counts["named"] += bool(right and (alarm is None or right[0] == alarm) and (right[0].step or 0) < STEPS // 5)
        else:
            counts["healthy"] += 1
            counts["false_alarms"] += alarm is not None
        told[case.name] = None if alarm is None else f"step {alarm.step}: {alarm}"
        last = verdicts[-1] if verdicts else None
        print(f"{case.name}: {told[case.name] or last} ({time.perf_counter() - began:.0f} s)", flush=True)
    print(json.dumps(counts | {"runs": told, "seed": options.seed}))


if __name__ == "__main__":
    main()
