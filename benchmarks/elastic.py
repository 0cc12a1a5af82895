"""Checks that a run goes on while its cluster changes: a node is lost, a node joins, a node is drained, a worker is stopped.

    python benchmarks/elastic.py [--only lost,joins,drained,stopped,head] [--steps 400]

Each case is a run of `train.workers=[1, 2]` on a cluster of one or two raylets of two CPUs on this machine; its losses are compared with
those of an undisturbed run of one worker. Every position must be in the sample log exactly once. Prints one JSON line:

loss_error: largest relative difference from the losses of that run; loss_error_of_two: the same for an undisturbed run of two workers,
which sum in another order; duplicates, missing: positions.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from swav_platform.cluster.session import SETTINGS
from swav_platform.data.ledger.sample_log import check
from swav_platform.runs.folder import RunFolder

RECIPE = [
    "views.large.size=16",
    "views.small.size=8",
    "views.small.count=2",
    "model.name=resnet_tiny",
    "model.stem=small",
    "model.stem_stride=2",
    "model.projection_hidden=32",
    "model.projection_dim=16",
    "method.prototypes=12",
    "data.row_size=8",
    "data.window=8",
    "data.segment=128",
    "data.tasks=1",
    "train.batch=32",
    "train.checkpoint_every=20",
    "train.threads=1",
    "train.optimiser.name=sgd",
    "train.optimiser.lr=3e-6",  # at 1e-4, a rounding error of 1e-7 grows to 1e-3 within 50 steps, with any number of workers
    "train.optimiser.warmup_steps=2",
    "train.optimiser.start_lr=0",
    "train.optimiser.final_lr=1e-6",
]


def write_shard(path: Path, images: int = 512) -> None:
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(images):
            pixels = Image.fromarray(generator.integers(0, 256, (5, 5, 3)).astype(np.uint8)).resize((48, 40))
            data = io.BytesIO()
            pixels.save(data, "JPEG")
            member = tarfile.TarInfo(f"{number:05d}.jpg")
            member.size = len(data.getvalue())
            tar.addfile(member, io.BytesIO(data.getvalue()))


class Run:
    """A run of `swav pretrain` on a cluster."""

    def __init__(self, folder: Path, name: str, steps: int, address: str, workers: str) -> None:
        self.name, self.folder, self.log = name, RunFolder(folder / name), folder / f"{name}-log"
        self._stderr = folder / f"{name}.stderr"
        command = [sys.executable, "-m", "swav_platform", "pretrain", str(folder / "recipe.yaml"), "--name", name, "--resume"]
        command += ["--data", str(folder / "images.tar"), "--out", str(folder), "--json", *RECIPE, f"train.steps={steps}"]
        self.process = subprocess.Popen(
            [*command, f"data.sample_log={self.log}", f"train.workers={workers}"],
            env=os.environ | {"RAY_ADDRESS": address},
            stdout=subprocess.DEVNULL,
            stderr=self._stderr.open("ab"),
            start_new_session=True,
        )

    def said(self) -> str:
        return self._stderr.read_text()

    def workers(self) -> list[int]:
        """Sizes of the groups so far."""
        return [int(n) for n in re.findall(r"^workers (\d+)", self.said(), re.MULTILINE)]

    def steps(self) -> int:
        """Finished steps of the current group and those before it, also steps after the newest checkpoint."""
        with contextlib.suppress(OSError):
            return len(self.folder.metrics.read_bytes().splitlines())
        return 0

    def committed(self) -> int:
        found = self.folder.path.glob("checkpoints/step-*/MANIFEST.json")
        return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)

    def written(self) -> float:
        """When the last step was recorded."""
        with contextlib.suppress(OSError):
            return self.folder.metrics.stat().st_mtime
        return 0.0

    def until(self, happened: Callable[[], Any], what: str, seconds: float = 300) -> float:
        """Waits, and returns the seconds that it took."""
        began = time.monotonic()
        while not happened():
            if time.monotonic() - began > seconds or self.process.poll() is not None:
                raise AssertionError(f"{self.name}: {what} did not happen\n{self.said()[-4000:]}")
            time.sleep(0.05)
        return time.monotonic() - began

    def until_it_goes_on(self) -> tuple[float, int]:
        """Waits for a step of a new group. Returns the seconds, and how many steps the last one had made after its checkpoint."""
        groups, most, began = len(self.workers()), 0, time.monotonic()
        while len(self.workers()) == groups:
            most = max(most, self.steps())
            if time.monotonic() - began > 300:
                raise AssertionError(f"{self.name} did not go on\n{self.said()[-4000:]}")
            time.sleep(0.02)
        started = time.time()
        committed = self.committed()
        self.until(lambda: self.written() > started and self.steps() > committed, "a step of the new group")
        return time.monotonic() - began, most - committed

    def finish(self, undisturbed: list[float]) -> dict[str, float]:
        self.succeed()
        log = check(self.log)
        return {"duplicates": log.duplicates, "missing": log.missing, "loss_error": self.error(undisturbed)}

    def succeed(self) -> None:
        code = self.process.wait(400)
        assert code == 0, f"{self.name} ended with {code}\n{self.said()[-4000:]}"

    def error(self, undisturbed: list[float]) -> float:
        return max(abs(a - b) / abs(b) for a, b in zip(self.folder.losses(), undisturbed, strict=True))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[Any]:
    """Raylets of two CPUs on this machine."""
    from ray.cluster_utils import Cluster

    started: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            started.add_node(num_cpus=2)
        yield started
    finally:
        started.shutdown()


Start = Callable[[str, str, str], Run]
Case = Callable[[Start], tuple[Run, dict[str, Any]]]


def begun(start: Start, name: str, nodes: Any) -> Run:
    run = start(name, nodes.address, "[1, 2]")
    run.until(lambda: run.committed() >= 20, "the first checkpoint")
    return run


def lost(start: Start) -> tuple[Run, dict[str, Any]]:
    with cluster(2) as nodes:
        run = begun(start, "lost", nodes)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        seconds, _ = run.until_it_goes_on()
        run.process.wait(400)
    return run, {"seconds_to_go_on": seconds, "groups": run.workers()}


def joins(start: Start) -> tuple[Run, dict[str, Any]]:
    with cluster(1) as nodes:
        run = begun(start, "joins", nodes)
        nodes.add_node(num_cpus=2)
        seconds, _ = run.until_it_goes_on()
        run.process.wait(400)
    return run, {"seconds_to_grow": seconds, "groups": run.workers()}


def drained(start: Start) -> tuple[Run, dict[str, Any]]:
    with cluster(2) as nodes:
        run = begun(start, "drained", nodes)
        victim = next(iter(nodes.worker_nodes))
        options = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test", "--deadline-remaining-seconds", "30"]
        ray = str(Path(sys.executable).parent / "ray")
        subprocess.run(
            [ray, "drain-node", "--address", nodes.address, "--node-id", victim.node_id, *options],
            check=True,
            capture_output=True,
        )
        told = time.monotonic()
        seconds, repeated = run.until_it_goes_on()
        time.sleep(max(0.0, told + 30 - time.monotonic()))
        nodes.remove_node(victim, allow_graceful=False)
        run.process.wait(400)
    return run, {"steps_lost_on_drain": repeated, "seconds_to_leave": seconds, "groups": run.workers()}


def stopped(start: Start) -> tuple[Run, dict[str, Any]]:
    with cluster(2) as nodes:
        run = begun(start, "stopped", nodes)
        found = [p for p in psutil.process_iter(["cmdline"]) if "ray::RayTrainWorker" in " ".join(p.info["cmdline"] or [])]
        found[-1].send_signal(signal.SIGSTOP)
        named = run.until(lambda: re.search(rf"worker \d+ \(process {found[-1].pid} .*no sign of life", run.said()), "its name")
        seconds, _ = run.until_it_goes_on()
        run.process.wait(400)
        stacks = len(list(run.folder.path.glob("stacks/*/rank-*.txt")))
    return run, {"seconds_to_name": named, "seconds_to_go_on_after_stop": named + seconds, "stacks": stacks}


def head(start: Start) -> tuple[Run, dict[str, Any]]:
    """The whole cluster is lost with the driver; the same command runs on another one."""
    with cluster(1) as nodes:
        run = begun(start, "head", nodes)
        before = run.folder.info()["run_id"]
        run.kill()
    with cluster(1) as nodes:
        run = start("head", nodes.address, "[1, 2]")
        run.process.wait(400)
    return run, {"same_mlflow_run": run.folder.info()["run_id"] == before}


CASES: dict[str, Case] = {"lost": lost, "joins": joins, "drained": drained, "stopped": stopped, "head": head}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    found: dict[str, Any] = {"duplicates": 0, "missing": 0, "loss_error": 0.0}
    with tempfile.TemporaryDirectory(prefix="elastic-") as place:
        folder, runs = Path(place), list[Run]()
        write_shard(folder / "images.tar")
        (folder / "recipe.yaml").touch()

        def start(name: str, address: str, workers: str) -> Run:
            runs.append(Run(folder, name, options.steps, address, workers))
            return runs[-1]

        try:
            plain, two = start("undisturbed", "local", "1"), start("two", "local", "2")
            plain.succeed()
            two.succeed()
            found["loss_error_of_two"] = two.error(plain.folder.losses())
            for name in options.only.split(","):
                run, seen = CASES[name](start)
                judged = run.finish(plain.folder.losses())
                found |= seen | {key: max(found[key], judged[key]) for key in judged}
                print(name, json.dumps(seen | judged), file=sys.stderr, flush=True)
        finally:
            for each in runs:
                each.kill()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
