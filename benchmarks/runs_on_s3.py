"""The whole life of a run in an S3 bucket behind a network that fails, with processes that are killed.

    python benchmarks/runs_on_s3.py [--kills 20] [--steps 40] [--share 0.1]

Trains one uninterrupted run on disk, then the same run in a bucket of a local S3 server (`weed`): a tenth of the server's answers fail
(503, reset, slow, truncated) and the training process gets SIGKILL at random moments until it was killed `kills` times. A second writer
tries its luck once. Needs the `dev` extra. Prints one JSON line:

kills; duplicates and missing: positions of the sample log; half_loaded: starts from a step that had no complete checkpoint;
losses_differ: steps whose loss is not that of the uninterrupted run; second_writer_refused; faults: answers that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from swav_platform.data.ledger.sample_log import check
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.records import metrics_in
from swav_platform.training.checkpoints import store as checkpoints
from tests.conftest import TINY, picture
from tests.data.storage.fault_proxy import FaultProxy
from tests.makers import write_tar
from tests.s3 import s3_server

URL = "s3://bucket/runs"


class Life:
    """Attempts at one run. name: of the run and of its sample log."""

    def __init__(self, folder: Path, out: str, steps: int, environment: dict[str, str]) -> None:
        self.folder, self.out, self.environment = folder, out, environment
        self.log = folder / ("log-bucket" if "://" in out else "log-disk")
        self.settings = [*TINY, f"train.steps={steps}", "train.checkpoint_every=1", f"data.sample_log={self.log}"]

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "swav_platform.training", str(self.folder / "recipe.yaml"), "--data", "shards"]
        command += ["--name", "mine", "--out", self.out, "--resume", *self.settings]
        errors = (self.folder / "stderr").open("ab")
        return subprocess.Popen(
            command, cwd=self.folder, env=os.environ | self.environment, stdout=subprocess.DEVNULL, stderr=errors
        )

    def logged(self, since: float) -> list[int]:
        """First steps of the files of the sample log that were written after a time."""
        files = [path for path in self.log.glob("rank-*.parquet") if path.stat().st_mtime > since]
        return [int(path.name.split("-")[3]) for path in files]


def complete(run: RunFolder) -> set[int]:
    """Steps of the complete checkpoints, and 0."""
    names = {key.split("/")[1] for key in run.storage.entries("checkpoints/") if key.endswith(checkpoints.MANIFEST)}
    return {0, *(checkpoints.steps_of(name) for name in names)}


def killed(life: Life, run: RunFolder, kills: int, generator: random.Random) -> dict[str, Any]:
    """Kills attempts and lets the last one finish."""
    half, done, refused = 0, 0, False
    while True:
        before, since = complete(run), time.time()
        process = life.start()
        if done == kills:
            assert process.wait(300) == 0, (life.folder / "stderr").read_text()[-2000:]
        else:
            _wait(lambda: bool(life.logged(since)) or process.poll() is not None, 120)  # noqa: B023
            if not refused:
                refused = life.start().wait(120) == 1
            time.sleep(generator.uniform(0, 0.6))
        if process.poll() is None:
            process.kill()
            process.wait()
            done += 1
        began = min(life.logged(since), default=0)
        half += began not in before | complete(run)  # the server may finish a killed process's last request after the first look
        if process.returncode == 0:
            return {"kills": done, "half_loaded": half, "second_writer_refused": refused}


def _wait(happened: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "timed out waiting"
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--share", type=float, default=0.1)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name) / "s3") as server:
        folder, generator = Path(name), np.random.default_rng(0)
        (folder / "shards").mkdir()
        (folder / "recipe.yaml").touch()
        for number in range(2):
            files = [(f"{number}-{i:03d}.jpg", picture(generator, i % 4)) for i in range(80)]
            write_tar(folder / "shards" / f"{number}.tar", files)
        server.store("bucket").put("probe", b"makes the bucket")
        cache = {"SWAV_CACHE": str(folder / "cache")}
        assert Life(folder, str(folder / "disk"), options.steps, cache).start().wait(300) == 0
        with FaultProxy(server.ports["s3"], share=options.share) as proxy:
            life = Life(folder, URL, options.steps, {**cache, **server.environment, "AWS_ENDPOINT_URL": proxy.url})
            run = RunFolder.at(f"{URL}/mine")
            result = killed(life, run, options.kills, random.Random(0))
        whole = RunFolder(folder / "disk" / "mine").losses()
        losses = [json.loads(line)["loss"] for line in metrics_in(run.storage)]
        found = check(life.log)
    result |= {"duplicates": found.duplicates, "missing": found.missing, "steps": found.steps}
    result["losses_differ"] = abs(len(whole) - len(losses)) + sum(a != b for a, b in zip(whole, losses, strict=False))
    print(json.dumps(result | {"faults": proxy.met.total(), "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
