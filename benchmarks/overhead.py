"""What do health, checkpoints and tracking cost beside the step itself? The CIFAR-10 recipe on synthetic images, in CPU time.

    python benchmarks/overhead.py            about a minute

CPU time of this process, so other programs hardly matter. Prints one JSON line:

share  Of the time of a step, all together, at the recipe's own frequencies (log_every, checkpoint_every).
parts  By kind. `tracking` is the thread that sends metrics to a SQLite store.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from swav_platform import registry
from swav_platform.config import Config, load
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.methods.comm import LocalComm
from swav_platform.registry import Card, Tracker, tracker
from swav_platform.rows.layout import Row, RowLayout
from swav_platform.runs.folder import RunFolder
from swav_platform.training import loop, step
from swav_platform.training.health.monitor import Monitor
from swav_platform.training.health.vitals import Vitals

RECIPE = Path(__file__).parent.parent / "configs" / "pretrain" / "cifar10_cpu.yaml"
spent: dict[str, float] = defaultdict(float)


def timed(owner: Any, name: str, kind: str, clock: Callable[[], float] = time.process_time) -> None:
    """Adds the time of a function to `spent[kind]`."""
    inner = getattr(owner, name)

    def measured(*arguments: Any, **options: Any) -> Any:
        began = clock()
        try:
            return inner(*arguments, **options)
        finally:
            spent[kind] += clock() - began

    setattr(owner, name, measured)


def rows(config: Config) -> Callable[[int, int], Iterator[Row]]:
    layout, size = RowLayout.of(config), config.data.row_size
    packed = np.random.default_rng(0).integers(0, 256, layout.nbytes, dtype=np.uint8)
    views = layout.views(packed)
    params = layout.params(np.zeros(layout.nbytes, np.uint8))
    names: dict[str, Any] = {"key": ["k"] * size, "shard": ["s.tar"] * size, "stand_in_for": [None] * size}

    def stream(first: int, last: int) -> Iterator[Row]:
        for number in range(first, last):
            position = number * size + np.arange(size)
            own: dict[str, Any] = {
                "views": views,
                "params": params,
                "packed": packed,
                "layout": layout,
                "look": np.zeros(size, np.uint8),
            }
            outcome, weight = np.full(size, Outcome.OK, np.uint8), np.ones(size, np.float32)
            yield Row(row=number, position=position, sample=position, outcome=outcome, weight=weight, events=[], **names, **own)

    return stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    logging.getLogger("swav").setLevel(logging.ERROR)
    recipe = load(RECIPE)
    every = {"log": recipe.train.log_every, "checkpoint": recipe.train.checkpoint_every}
    config = load(
        RECIPE, ["data.photometric=worker", f"train.steps={options.steps}", "train.checkpoint_every=20", "train.threads=1"]
    )
    for name in ("gather", "measure"):
        timed(Vitals, name, "health")
    timed(Monitor, "line", "health")
    timed(step, "update_share", "health")
    timed(loop, "_checkpoint", "checkpoints")
    timed(tracker.Tracker, "_send", "tracking", time.thread_time)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run")
        folder.path.mkdir()
        uri = f"sqlite:///{place}/mlflow.db"
        folder.write(config, index="none", index_digest="i", samples=50_000)
        registry.begin(folder, uri, Card("overhead", {}, {}))
        began = time.process_time()
        with Tracker(folder, uri):
            given: dict[str, Any] = {"samples": 50_000, "index_digest": "i", "comm": LocalComm(), "resume": False}
            loop.train(config, rows=rows(config), run_dir=folder.path, **given)
        total = time.process_time() - began
    bare = (total - sum(spent.values())) / options.steps
    logged = options.steps // every["log"] + 1
    per_step = {
        "health": spent["health"] / logged / every["log"],
        "checkpoints": spent["checkpoints"] / (options.steps / 20) / every["checkpoint"],
        "tracking": spent["tracking"] / options.steps,
    }
    parts = {name: round(seconds / bare, 5) for name, seconds in per_step.items()}
    print(
        json.dumps(
            {"share": round(sum(parts.values()), 4), "parts": parts, "step_seconds": round(bare, 4), "steps": options.steps}
        )
    )


if __name__ == "__main__":
    main()
