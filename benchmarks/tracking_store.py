"""Do first runs that start together, or are killed while the SQLite store of MLflow is made, leave a store that works?

    python benchmarks/tracking_store.py [--together 10] [--kills 20] [--seed 0]

Each run is a process, forked after the imports, that opens a run in MLflow as `swav pretrain` does, without Ray. `together` runs start at one moment in a new
folder. Then, `kills` times, a run in a new folder gets SIGKILL at a random moment after it began to make the store, and another run
follows in the same folder. Prints one JSON object: `together_ok` and `after_kill_ok` count runs that worked, `kills_inside` counts
kills that came before the store was complete.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
import traceback
from pathlib import Path

import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  slow: before the processes are forked

from swav_platform.config import load
from swav_platform.registry import start_run
from swav_platform.registry.connect import connect, quiet


def first_run(out: Path, start: Path) -> int:
    """The id of a process that waits for the file `start` and then opens a run. It ends with 0 if that worked."""
    if child := os.fork():
        return child
    code = 1
    try:
        while not start.exists():
            time.sleep(0.001)
        run_id = start_run(load(None, [f"run.out={out}", "run.name=r"]), None, {}, {"seed": 31})
        connect(f"sqlite:///{out}/mlflow.db").log_metric(run_id, "m", 1.0)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def works(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


def together(count: int, folder: Path) -> int:
    start = folder / "start"
    children = [first_run(folder / "runs", start) for _ in range(count)]
    start.touch()
    return sum([works(child) for child in children])


def kill(folder: Path, delay: float) -> tuple[bool, bool]:
    """Kills a run `delay` seconds after it began to make the store. Returns whether that was in time, and whether the next run works."""
    start, store = folder / "start", folder / "runs" / "mlflow.db"
    child = first_run(folder / "runs", start)
    start.touch()
    deadline = time.monotonic() + 60
    while not (store.exists() or list(store.parent.glob("_mlflow.db.new*"))) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    inside = not store.exists()
    return inside, works(first_run(folder / "runs", start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--together", type=int, default=10)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    quiet()
    began, draw = time.monotonic(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone = time.monotonic()
        assert works(first_run(Path(folder) / "runs", Path(folder)))
        alone = time.monotonic() - alone
    with tempfile.TemporaryDirectory() as folder:
        at_once = together(options.together, Path(folder))
    ended = []
    for _ in range(options.kills):
        with tempfile.TemporaryDirectory() as folder:
            ended.append(kill(Path(folder), draw.uniform(0, 0.9 * alone)))
    found = {
        "together": options.together,
        "together_ok": at_once,
        "kills": options.kills,
        "kills_inside": sum(inside for inside, _ in ended),
        "after_kill_ok": sum(worked for _, worked in ended),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
