"""Checks that every position is consumed exactly once when processes are killed: whole runs on Ray, with unreadable images.

    python benchmarks/exactly_once.py DIR_OF_SHARDS [--victims task,rank,driver,all,raylet] [--bad 0.02] [key=value ...]

Trains one uninterrupted run, then one for each victim, which gets SIGKILL: a data task, a rank, the driver, all processes, or
a second raylet. If the driver was killed, the run is resumed. The sample log must contain every position exactly once and every
readable sample at least once, with the view hashes of the uninterrupted run. Uses two shards. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from swav_platform.data.ledger.sample_log import check

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
    "data.row_size=32",
    "data.window=8",
    "data.segment=48",
    "train.batch=128",
    "train.checkpoint_every=5",
    "train.threads=1",
    "train.workers=2",
    "train.optimiser.name=adamw",
    "train.optimiser.lr=1e-3",
    "train.optimiser.warmup_steps=2",
    "train.optimiser.start_lr=0",
    "train.optimiser.final_lr=0",
]

WORDS = {"task": "ray::MapBatches", "rank": "ray::RayTrainWorker"}


def spoil(shards: Path, into: Path, share: float) -> tuple[int, set[str]]:
    """Copies two shards and replaces a share of the images by invalid bytes. Returns the samples and the readable keys."""
    generator, readable, count = random.Random(0), set(), 0
    for shard in sorted(shards.glob("*.tar"))[:2]:
        with tarfile.open(shard) as old, tarfile.open(into / shard.name, "w", format=tarfile.USTAR_FORMAT) as new:
            for member in old:
                content = old.extractfile(member)
                assert content is not None
                data, count = content.read(), count + 1
                if generator.random() < share:
                    data = b"x" * len(data)
                else:
                    readable.add(f"{shard.name}:{member.name.rpartition('.')[0]}")
                new.addfile(member, io.BytesIO(data))
    return count, readable


class Runs:
    """Runs over the same shards, each with its own folder and log."""

    def __init__(self, folder: Path, shards: Path, settings: list[str]) -> None:
        self.folder, self.shards, self.settings = folder, shards, settings

    def start(self, name: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        recipe = self.folder / "recipe.yaml"
        recipe.touch()
        command = [sys.executable, "-m", "swav_platform", "pretrain", str(recipe), "--data", str(self.shards), "--name", name]
        command += ["--out", str(self.folder), "--json", "--resume", f"data.sample_log={self.log(name)}", *self.settings]
        return subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=self.stderr(name).open("ab"),
            start_new_session=True,
        )

    def stderr(self, name: str) -> Path:
        return self.folder / f"{name}.stderr"

    def log(self, name: str) -> Path:
        return self.folder / f"{name}-log"

    def committed(self, name: str) -> int:
        found = (self.folder / name / "checkpoints").glob("step-*/MANIFEST.json")
        return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)

    def contents(self, name: str) -> dict[int, tuple[Any, ...]]:
        """By position: key, shard, outcome, key of the sample that was replaced, hash of the views."""
        log = pq.read_table(self.log(name)).to_pylist()
        names = ("sample_key", "shard", "outcome", "stand_in_for", "view_hash")
        return {line["position"]: tuple(line[n] for n in names) for line in log}


def kill(victim: str, run: subprocess.Popen[bytes], second: subprocess.Popen[bytes] | None) -> None:
    if victim == "all":
        os.killpg(run.pid, signal.SIGKILL)
        for process in _all(run.pid):
            _end(process)
    elif victim == "driver":
        run.kill()
    elif victim == "raylet":
        assert second is not None
        for process in _all(second.pid):
            _end(process)
    else:
        deadline = time.monotonic() + 60
        while not (found := [p for p in _all(run.pid) if WORDS[victim] in _title(p)]):
            assert time.monotonic() < deadline, f"found no {victim} to kill"
            time.sleep(0.02)
        _end(found[0])


def _all(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    return []


def _end(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextlib.contextmanager
def cluster() -> Iterator[tuple[dict[str, str], subprocess.Popen[bytes]]]:
    """Starts two raylets on free ports. Yields the environment for connecting to them, and the second raylet."""
    sessions = Path(tempfile.gettempdir()) / f"ray-{secrets.token_hex(3)}"  # socket paths must be short
    port, *others = _free_ports(11)
    address = f"127.0.0.1:{port}"
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ADDRESS": address}
    first = ["--head", f"--port={port}", f"--temp-dir={sessions}", "--num-cpus=4", "--include-dashboard=false"]
    head = _raylet(access, first, others[:5])
    second = None
    try:
        _wait(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), 60)
        time.sleep(3)
        second = _raylet(access, [f"--address={address}", "--num-cpus=2"], others[5:])
        time.sleep(8)
        assert second.poll() is None, "the second raylet did not join"
        yield access, second
    finally:
        for pid in (head.pid, second.pid if second else head.pid):
            for process in _all(pid):
                _end(process)


def _raylet(access: dict[str, str], arguments: list[str], ports: list[int]) -> subprocess.Popen[bytes]:
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *arguments]
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=False)]
    environment = {name: value for name, value in (os.environ | access).items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _wait(happened: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "timed out waiting"
        time.sleep(0.05)


def one_round(runs: Runs, victim: str, after: int) -> dict[str, Any]:
    """Kills the victim once `after` steps are committed, and waits until the run has finished."""
    with contextlib.ExitStack() as stack:
        environment, second = stack.enter_context(cluster()) if victim == "raylet" else ({}, None)
        began = time.monotonic()
        run = runs.start(victim, environment)
        _wait(lambda: runs.committed(victim) >= after or run.poll() is not None, 400)
        assert run.poll() is None, f"the run stopped before the kill: {runs.stderr(victim).read_text()[-1000:]}"
        killed_after = runs.committed(victim)
        kill(victim, run, second)
        resumed = victim in ("driver", "all")
        if resumed:
            run.wait(60)
            run = runs.start(victim, environment)
        code = run.wait(400)
        return {
            "killed_after_step": killed_after,
            "resumed": resumed,
            "exit": code,
            "seconds": round(time.monotonic() - began, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--victims", default="task,rank,driver,all,raylet")
    parser.add_argument("--bad", type=float, default=0.02)
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        samples, readable = spoil(options.shards, folder / "shards", options.bad)
        steps = -(-samples // 128) + 4
        runs = Runs(folder, folder / "shards", [*RECIPE, f"train.steps={steps}", *options.overrides])
        code = runs.start("unbroken", {}).wait(600)
        assert code == 0, f"the uninterrupted run exited with {code}"
        whole, rounds = runs.contents("unbroken"), {}
        for number, victim in enumerate(options.victims.split(",")):
            result = one_round(runs, victim, 10 + 5 * (number % 3))
            found, content = check(runs.log(victim)), runs.contents(victim)
            seen = {f"{shard}:{key}" for key, shard, *_ in content.values()}
            result |= {
                "positions": found.positions,
                "duplicates": found.duplicates,
                "missing": found.missing,
                "steps": found.steps,
            }
            result |= {
                "readable_unseen": len(readable - seen),
                "differs_from_unbroken": sum(content.get(p) != whole[p] for p in whole),
            }
            right = found.ok and result["exit"] == 0 and found.steps == steps
            print(json.dumps({victim: result}), file=sys.stderr)
            rounds[victim] = result | {"ok": right and not result["readable_unseen"] and not result["differs_from_unbroken"]}
    bad = sum(content[2] != "ok" and content[2] != "filler" for content in whole.values())
    print(
        json.dumps(
            {
                "ok": all(r["ok"] for r in rounds.values()),
                "samples": samples,
                "bad_positions": bad,
                "steps": steps,
                "rounds": rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
