"""Does a run survive its storage? Shards on an S3 server that stops for a minute, credentials that are revoked, shards that are moved
away and come back, and shards that do not come back.

    python benchmarks/outage.py [--seconds 60] [--steps 60] [--cases stopped,revoked,moved,gone]

Every run is `swav pretrain` in a process of its own. The last line is a JSON object:

- `read_errors`: positions that were recorded as unreadable.
- `losses_equal`: all losses are bit-equal to those of an undisturbed run.
- `succeeded_without_data`: a run without its shards ended with exit code 0 or wrote a model.
- `resumed`: that run completed with --resume after the shards came back.
- `waits_said`: each wait was on the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from swav_platform.data.ledger.parts import read_events  # noqa: E402
from swav_platform.runs.metrics import last_metrics, read_metrics  # noqa: E402
from tests.conftest import TINY, picture  # noqa: E402
from tests.makers import write_tar  # noqa: E402
from tests.s3 import S3Server, s3_server  # noqa: E402

CASES = ("stopped", "revoked", "moved", "gone")
STRIKE_AT = 4  # finished steps, when the storage fails


@dataclass(frozen=True)
class Ended:
    code: int
    losses: list[float]
    read_errors: int
    registered: bool
    said: str


class Runs:
    """Runs over the same shards, in a folder of their own."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        (folder / "recipe.yaml").write_text("seed: 5\n")

    def run(self, name: str, data: str, strike: Callable[[], None] = lambda: None, *options: str) -> Ended:
        overrides = [*TINY, f"train.steps={self.steps}", "train.optimiser.warmup_steps=2", *options]
        command = [sys.executable, "-m", "swav_platform", "pretrain", "recipe.yaml", "--data", data, "--name", name, "--json"]
        with (self.folder / f"{name}.err").open("a") as err, (self.folder / f"{name}.out").open("a") as out:
            environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""}
            process = subprocess.Popen([*command, *overrides], cwd=self.folder, stdout=out, stderr=err, env=environment)
            run = self.folder / "runs" / name
            try:
                while process.poll() is None and (last_metrics(run) or {"step": 0})["step"] + 1 < STRIKE_AT:
                    time.sleep(0.05)
                if process.poll() is None:
                    strike()
                process.wait()
            finally:
                process.kill()
        events = list(read_events(run / "ledger")) if (run / "ledger").is_dir() else []
        return Ended(
            process.returncode,
            [line["loss"] for line in read_metrics(run)],
            sum(event.outcome.word == "read_error" for event in events),
            (run / "model").is_dir() or (run / "summary.json").exists(),
            (self.folder / f"{name}.err").read_text(),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="length of an outage")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--patience", type=float, default=15, help="data.storage_patience of the run whose shards do not come back"
    )
    parser.add_argument("--cases", default=",".join(CASES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "s3") as server:
        print(json.dumps(measure(Path(folder), server, options)))
    return 0


def measure(folder: Path, server: S3Server, options: argparse.Namespace) -> dict[str, Any]:
    shards, away, cases = folder / "shards", folder / "away", options.cases.split(",")
    make_shards(shards)
    url = server.upload("pictures", shards) + "/*.tar"
    runs = Runs(folder, options.steps)

    def outage(begin: Callable[[], object], end: Callable[[], object]) -> Callable[[], None]:
        def strike() -> None:
            begin()
            time.sleep(options.seconds)
            end()

        return strike

    def take() -> None:
        shards.rename(away)

    def back() -> None:
        away.rename(shards)

    here = f"{shards}/*.tar"
    calm = runs.run("calm", here)
    assert calm.code == 0, calm.said
    strikes = {
        "stopped": (url, outage(server.stop, server.start)),
        "revoked": (url, outage(server.revoke, server.restore)),
        "moved": (here, outage(take, back)),
    }
    ended = {case: runs.run(case, *strikes[case]) for case in strikes if case in cases}
    found = {
        "seconds": options.seconds,
        "steps": options.steps,
        "cases": sorted(ended),
        "read_errors": sum(each.read_errors for each in ended.values()),
        "losses_equal": all(each.code == 0 and each.losses == calm.losses for each in ended.values()),
        "waits_said": all("waiting for" in each.said for each in ended.values()),
    }
    return found | (gone(runs, here, take, back, calm, options.patience) if "gone" in cases else {})


def gone(
    runs: Runs, data: str, take: Callable[[], None], back: Callable[[], None], calm: Ended, patience: float
) -> dict[str, Any]:
    """A run whose shards do not come back, and its continuation."""
    began = time.monotonic()
    lost = runs.run("gone", data, take, f"data.storage_patience={patience}")
    seconds = time.monotonic() - began
    back()
    shutil.copy(runs.folder / "gone.err", runs.folder / "gone-first.err")
    resumed = runs.run("gone", data, lambda: None, "--resume")
    return {
        "succeeded_without_data": lost.code == 0 or lost.registered,
        "exit_code_without_data": lost.code,
        "seconds_without_data": round(seconds, 1),
        "resumed": resumed.code == 0 and resumed.losses == calm.losses and resumed.read_errors == 0,
        "said": lost.said.strip().splitlines()[-1],
    }


def make_shards(folder: Path, shards: int = 4, images: int = 120) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    for shard in range(shards):
        write_tar(folder / f"{shard:06d}.tar", [(f"{shard}-{image:03d}.jpg", picture(rng, image % 4)) for image in range(images)])


if __name__ == "__main__":
    sys.exit(main())
