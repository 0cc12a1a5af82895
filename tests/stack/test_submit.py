"""Jobs on a real Ray cluster in processes of its own: submitted, followed, left, found, stopped, resumed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.stack

SWAV = [sys.executable, "-m", "swav_platform"]
NAME, LABEL = "été-猫", r'run="\\xe9t\\xe9-\\u732b"'
"""A run's name in any script, and how Prometheus shows it."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass(frozen=True)
class Cluster:
    address: str
    environment: dict[str, str]
    folder: Path  # not the one that the head was started in
    metrics: str  # what Prometheus would ask

    def counted(self) -> dict[str, float]:
        """Values of our metrics by name and labels."""
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if x.startswith("ray_swav_"))}

    def swav(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SWAV, *arguments, "--address", self.address],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
            timeout=timeout,
        )

    def said(self, *arguments: str) -> dict[str, Any]:
        done = self.swav(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port, dashboard, agent, grpc, environments, metrics = free_ports(6)
    sessions = Path(f"/tmp/ray-{os.getpid()}-{secrets.token_hex(2)}")  # socket paths must be short
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "500",
    }
    environment.pop("RAY_ADDRESS", None)
    ray = Path(sys.executable).parent / "ray"
    start = [str(ray), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=3"]
    # The agents' ports are fixed by default, and another Ray may run on this machine.
    start += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"]
    start += [f"--runtime-env-agent-port={environments}", f"--metrics-export-port={metrics}"]
    head = subprocess.Popen(
        [*start, "--dashboard-host=127.0.0.1", f"--temp-dir={sessions}", "--disable-usage-stats"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    found = Cluster(
        f"http://127.0.0.1:{dashboard}", environment, tmp_path_factory.mktemp("elsewhere"), f"http://127.0.0.1:{metrics}/metrics"
    )
    try:
        deadline = time.monotonic() + 240
        while found.swav("list").returncode:
            assert time.monotonic() < deadline, found.swav("list").stderr
            assert head.poll() is None
            time.sleep(1)
        yield found
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
            with suppress(psutil.NoSuchProcess):  # some end by themselves when others do
                process.kill()
        shutil.rmtree(sessions, ignore_errors=True)


def metrics_of(cluster: Cluster, *names: str) -> dict[str, float]:
    """Our metrics once each of `names` is among them: agents tell them now and then."""
    deadline = time.monotonic() + 240
    while True:
        found = cluster.counted()
        if all(any(known.startswith(f"ray_{name}") for known in found) for name in names):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_a_job_from_submission_to_its_end(cluster: Cluster, shards: Path, tiny: list[str]) -> None:
    (cluster.folder / "recipe.yaml").touch()
    job = ["submit", "recipe.yaml", "--data", os.path.relpath(shards, cluster.folder), "--name", NAME, *tiny]
    job += ["train.steps=120", "train.workers=2", "train.checkpoint_every=10", f"data.sample_log={cluster.folder / 'log'}"]

    follower = subprocess.Popen(
        # Who starts the tests in a shell's background has Ctrl-C ignored in all that they start.
        ["env", "--default-signal=INT", *SWAV, *job, "--address", cluster.address, "--follow"],
        env=cluster.environment,
        cwd=cluster.folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stderr is not None
    seen = ""
    while "step " not in seen:
        line = follower.stderr.readline()
        assert line, seen
        seen += line
    follower.send_signal(signal.SIGINT)
    _, rest = follower.communicate(timeout=120)
    assert follower.returncode == 0
    assert "Detached" in rest

    counted = metrics_of(cluster, "swav_data_images_total", "swav_data_outcomes_total", "swav_data_decode_seconds_total")
    assert all(value > 0 for value in counted.values())
    assert any('outcome="ok"' in name and LABEL in name for name in counted), counted

    listed = cluster.said("list")["jobs"]
    assert [(j["name"], j["state"]) for j in listed] == [(NAME, "running")]
    twice = cluster.swav(*job)
    assert twice.returncode == 2
    assert f"swav stop '{NAME}'" in twice.stderr

    committed = cluster.folder / "runs" / NAME / "checkpoints"
    deadline = time.monotonic() + 300
    while not any(committed.glob("*/MANIFEST.json")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    stopped = cluster.said("stop", NAME)
    assert stopped["state"] == "stopped"
    assert 0 < stopped["step"] < 120
    assert stopped["run_id"]

    fewer = [argument.replace("checkpoint_every=10", "checkpoint_every=50") for argument in job]
    again = cluster.swav(*fewer, "data.segment=512", "--wait", "--json")  # the rest is in two data sets, not in dozens
    assert again.returncode == 0, again.stderr
    ended = json.loads(again.stdout.splitlines()[-1])
    assert (ended["id"], ended["state"], ended["step"]) == (f"{NAME}-2", "succeeded", 120)
    assert ended["run_id"] == stopped["run_id"]
    steps = [json.loads(line)["step"] for line in (cluster.folder / "runs" / NAME / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(120))
    check = subprocess.run([*SWAV, "ledger", "--check", str(cluster.folder / "log"), "--json"], capture_output=True, text=True)
    assert json.loads(check.stdout)["ok"]


def test_a_failing_job_fails_the_one_who_waits(cluster: Cluster, tiny: list[str]) -> None:
    (cluster.folder / "recipe.yaml").touch()
    failed = cluster.swav("submit", "recipe.yaml", "--data", "/no/such/shards", "--name", "doomed", "--wait", *tiny)
    assert failed.returncode == 2
    assert cluster.said("status", "doomed")["state"] == "failed"
    logs = cluster.swav("logs", "doomed")
    assert "/no/such/shards" in logs.stdout


def test_a_cluster_that_wants_a_token_says_so(cluster: Cluster) -> None:
    environment = {k: v for k, v in cluster.environment.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [*SWAV, "list", "--address", cluster.address], env={**environment, "HOME": "/nonexistent"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
