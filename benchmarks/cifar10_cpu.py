"""Measures learning on a CPU: pretrains on CIFAR-10 with configs/pretrain/cifar10_cpu.yaml and scores the encoder by kNN.

    python benchmarks/cifar10_cpu.py DIR_OF_SHARDS [--run RUN] [--curve FILE.svg]

DIR_OF_SHARDS holds cifar10-train-*.tar and cifar10-test-*.tar with keys `<class>/<id>`. --run scores an existing run, and
--curve writes its loss curve. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from swav_platform.evaluation.report import curve
from swav_platform.runs.folder import find

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "pretrain" / "cifar10_cpu.yaml"


def swav(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "swav_platform", *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--run")
    parser.add_argument("--curve", type=Path)
    options = parser.parse_args()
    train, test = (str(options.shards / f"cifar10-{part}-*.tar") for part in ("train", "test"))
    run = options.run or swav("pretrain", str(RECIPE), "--data", train, "--name", "cifar10")["folder"]
    folder = find(run)
    trained = folder.summary()
    assert trained is not None, f"the run {run} has not finished"
    sizes = ["--bank-size", "10000", "--query-size", "2000"]
    scored = swav("evaluate", "knn", str(folder.path), "--bank", train, "--query", test, *sizes)
    if options.curve:
        options.curve.write_text(curve(folder.losses(), math.log(folder.config().method.heads[0])))
    kept = ("steps", "images", "seconds", "images_per_second", "loss_first", "loss_last")
    gain = round(scored["knn_top1"] - scored["knn_top1_random_init"], 2)
    print(json.dumps({k: trained[k] for k in kept} | scored | {"knn_gain": gain, "cores": os.cpu_count(), "n": 1}))


if __name__ == "__main__":
    main()
