"""How long does `swav pretrain` take to its first step? A local Ray, a new MLflow store, the CIFAR-10 recipe on 512 synthetic images.

    python benchmarks/start.py             about half a minute a round, on a quiet machine

Each round is a new folder and a new process. Prints where the seconds go, as seen from outside, and one JSON line:

seconds  From the command to the first line of metrics.jsonl; median over the rounds.
parts    Seconds of each part: `command` (imports, index), `tracking` (from then until MLflow has the run and Ray has started),
         `worker` (Ray Train's controller, a process with torch), `rows` (network, data tasks, the first row and step).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = Path(__file__).parent.parent / "configs" / "pretrain" / "cifar10_cpu.yaml"
PARTS = ("command", "tracking", "worker", "rows")


def shard(path: Path, images: int = 512) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(images):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{number:05d}.png")
            info.size = len(buffer.getvalue())
            buffer.seek(0)
            tar.addfile(info, buffer)


def measured(folder: Path) -> list[float]:
    """Times of run.json, of Ray Train's folder, of the lock of rank 0 and of the first metrics, in seconds since the command."""
    shard(folder / "images.tar")
    run = folder / "runs" / "start"
    command = [sys.executable, "-m", "swav_platform", "pretrain", str(RECIPE), "--data", str(folder / "images.tar")]
    environment = os.environ | {"SWAV_CACHE": str(folder / "cache")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment.pop("RAY_ADDRESS", None)
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--name", "start", "--out", str(folder / "runs"), "train.steps=5"], stdout=log, stderr=log, env=environment
        )
    try:
        signs = [run / "run.json", run / "ray", run / ".writer", run / "metrics.jsonl"]
        times: list[float] = []
        while len(times) < len(signs):
            if signs[len(times)].exists() and (signs[len(times)].name != "metrics.jsonl" or signs[-1].stat().st_size):
                times.append(time.monotonic() - began)
            elif process.poll() is not None and not signs[-1].exists():
                raise SystemExit((folder / "log").read_text())
            else:
                time.sleep(0.01)
    finally:
        process.wait()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: list[list[float]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measured(Path(folder)))
    median = [statistics.median(column) for column in zip(*found, strict=True)]
    parts = {name: round(end - start, 1) for name, start, end in zip(PARTS, [0.0, *median], median, strict=False)}
    for name, seconds in parts.items():
        print(f"{name:<10}{seconds:6.1f} s")
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({"seconds": round(median[-1], 1), "parts": parts, "rounds": options.rounds, "cores": cores}))


if __name__ == "__main__":
    main()
