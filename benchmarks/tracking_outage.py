"""Does MLflow have a run's whole record after an outage of its server in which the driver is killed and the run is resumed?

    python benchmarks/tracking_outage.py [--seconds 60] [--steps 3000]

The run is `swav pretrain` in a process of its own; the server is MLflow's. The server dies in mid run. After half of `seconds` the run
gets SIGKILL and is resumed; after all of them the server is back at its address. Prints one JSON object: `points` of train/loss in
the run's record, `missing` and `doubled` ones in MLflow over all metrics, `status` of the run there, and `exit_code` of the resumed run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from swav_platform.registry.connect import connect  # noqa: E402
from swav_platform.runs.metrics import last_metrics, read_metrics  # noqa: E402
from tests.conftest import TINY, picture  # noqa: E402
from tests.makers import write_tar  # noqa: E402
from tests.mlflow_server import MlflowServer  # noqa: E402

STRIKE_AT = 20  # finished steps, when the server dies


def start(folder: Path, uri: str, steps: int, patience: float) -> subprocess.Popen[bytes]:
    overrides = [
        *TINY,
        f"train.steps={steps}",
        "train.checkpoint_every=10",
        "data.segment=4096",
        f"tracking.uri={uri}",
        f"tracking.patience={patience}",
    ]
    command = [sys.executable, "-m", "swav_platform", "pretrain", "recipe.yaml", "--data", "shards", "--name", "r", "--resume"]
    with (folder / "run.log").open("ab") as log:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [*command, *overrides], cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def measure(folder: Path, server: MlflowServer, seconds: float, steps: int) -> dict[str, Any]:
    run = folder / "runs" / "r"
    process = start(folder, server.uri, steps, seconds + 120)
    try:
        while process.poll() is None and (last_metrics(run) or {"step": 0})["step"] < STRIKE_AT:
            time.sleep(0.1)
        assert process.poll() is None, (folder / "run.log").read_text()
        server.stop()
        time.sleep(seconds / 2)
        killed_at = (last_metrics(run) or {"step": 0})["step"] if process.poll() is None else None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = start(folder, server.uri, steps, seconds + 120)
        time.sleep(seconds / 2)
        server.start()
        code = process.wait(600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return {"seconds": seconds, "killed_at": killed_at, "exit_code": code, **compared(run, server.uri)}


def compared(run: Path, uri: str) -> dict[str, Any]:
    """The run's record against MLflow's history, over all metrics that the record has."""
    client, run_id = connect(uri), json.loads((run / "run.json").read_text())["run_id"]
    here: dict[str, Counter[tuple[int, float]]] = {}
    for line in read_metrics(run):
        for key, value in line.items():
            if "/" in key and value is not None:
                here.setdefault(key, Counter())[int(line["step"]), float(value)] += 1
    there = {key: Counter((each.step, each.value) for each in client.get_metric_history(run_id, key)) for key in here}
    return {
        "metrics": len(here),
        "points": here["train/loss"].total(),
        "missing": sum((here[key] - there[key]).total() for key in here),
        "doubled": sum((there[key] - here[key]).total() for key in here),
        "status": client.get_run(run_id).info.status,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="length of the outage")
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tar(folder / "shards" / "a.tar", [(f"{i:03d}.jpg", picture(rng, i % 4)) for i in range(160)])
        (folder / "recipe.yaml").write_text("seed: 5\n")
        server = MlflowServer(folder / "server").start()
        try:
            print(json.dumps(measure(folder, server, options.seconds, options.steps)))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
