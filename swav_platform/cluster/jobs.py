"""Pretraining as jobs of a Ray cluster, through the Ray Jobs API: submit, status, logs, stop, list.

A job's name is its run's name. Each submission of a name gets its own id (name, name-2, name-3 …), so that a run that
failed can be submitted again and resumes from its checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from swav_platform.cluster.pretrain import with_absolute_paths
from swav_platform.cluster.report import read_log
from swav_platform.config import Config, from_tree
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.folder import runs_folder

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
READY_SECONDS = 60.0
OUTAGE_TIMEOUT = 60.0  # seconds that a cluster may be unreachable while its job is followed
ENDED = ("succeeded", "failed", "stopped")
_STOPPED_BY_SIGNAL = (130, 143, -2, -15)
_ERROR = re.compile(r"^swav: (.+)", re.MULTILINE)
_RUN_ID = re.compile(r"^run_id (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    id: str
    name: str
    state: str  # pending, running, succeeded, failed, stopped
    exit_code: int | None
    started: float | None
    message: str


class Cluster:
    """A Ray cluster, by the address of its dashboard. Each method raises UserError when the address does not answer."""

    def __init__(self, address: str | None) -> None:
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        self.address = address if "://" in address else f"http://{address}"
        place = urlsplit(self.address)
        if place.scheme not in ("http", "https"):
            raise UsageError(
                f"{address} is not the address of a Ray dashboard ({place.scheme}:// is for Ray's own clients). "
                f"Jobs use HTTP: --address http://{place.hostname or 'HEAD'}:8265."
            )
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(name, None)  # Ray's client prefers them to the address that is passed

    @functools.cached_property
    def _client(self) -> Any:
        """Connects at first use, so that errors in the configuration are reported first."""
        from ray.job_submission import JobSubmissionClient

        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return JobSubmissionClient(self.address)

    def submit(self, config: Config) -> Job:
        """Raises UsageError for a run that is active, or for paths that the cluster can't see."""
        config = self._with_absolute_paths(config)
        name = str(config.run.name)
        known = self.jobs()
        if active := [job for job in known if job.name == name and job.state not in ENDED]:
            raise UsageError(
                f"Run {name} is {active[0].state} on {self.address} (job {active[0].id}). Follow it with "
                f"`swav logs {shlex.quote(name)} --follow --address {self.address}`, "
                f"stop it with `swav stop {shlex.quote(name)} --address {self.address}`, or choose another --name."
            )
        taken = {job.name for job in known if job.name != name} | {details.submission_id for details in self._listed()}
        job_id = _free_id(name, taken)
        with tempfile.TemporaryDirectory() as package, self._explained():
            Path(package, "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            self._submit_when_ready(
                entrypoint=_entrypoint("pretrain config.yaml --resume --json"),
                submission_id=job_id,
                metadata={"run": name},
                runtime_env={"working_dir": package, "env_vars": {"PYTHONUNBUFFERED": "1"}},
            )
        return self._now(job_id)

    def _submit_when_ready(self, **job: Any) -> None:
        """Retries: a head that has just started answers before it accepts jobs."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                self._client.submit_job(**job)
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def jobs(self) -> list[Job]:
        """All jobs that `swav submit` created, oldest first."""
        found = [self._job(details) for details in self._listed() if (details.metadata or {}).get("run")]
        return sorted(found, key=lambda job: job.started or 0.0)

    def job(self, name: str) -> Job:
        """The newest job of the run `name`, else the job with that id. Raises UsageError if there is none."""
        jobs = self.jobs()
        found = [job for job in jobs if job.name == name] or [job for job in jobs if job.id == name]
        if not found:
            raise UsageError(f"There is no job '{name}' on {self.address}; `swav list --address {self.address}` lists all jobs.")
        return found[-1]

    def logs(self, job: Job) -> str:
        with self._explained():
            return str(self._client.get_job_logs(job.id))

    def report(self, job: Job) -> dict[str, Any]:
        """The keys that `submit`, `status` and `list` print with --json."""
        text = self.logs(job) if job.state != "pending" else ""
        told, run_ids, errors = read_log(text), _RUN_ID.findall(text), _ERROR.findall(text)
        if job.state != "running":
            told |= {"waiting_for": "a node of the cluster" if job.state == "pending" else None, "health": None}
        return {
            "id": job.id,
            "name": job.name,
            "state": job.state,
            "address": self.address,
            "run_id": run_ids[-1] if run_ids else None,
            **told,
            "error": errors[-1] if errors and job.state == "failed" else None,
        }

    def follow(self, job: Job, show: Callable[[str], None], poll: float = 1.0) -> Job:
        """Passes new log text to `show` until the job ends; returns the job in its final state.

        Raises UserError when the cluster has not answered for OUTAGE_TIMEOUT seconds.
        """
        shown, answered = 0, time.monotonic()
        while True:
            try:
                now = self._now(job.id)
                text = self.logs(now) if now.state != "pending" else ""
            except UserError:
                if time.monotonic() - answered > OUTAGE_TIMEOUT:
                    raise
                time.sleep(poll)
                continue
            answered = time.monotonic()
            if len(text) > shown:
                show(text[shown:])
                shown = len(text)
            if now.state in ENDED:
                return now
            time.sleep(poll)

    def stop(self, job: Job, timeout: float = 60.0) -> Job:
        """Stops a job and waits for its end. Raises UserError after `timeout` seconds."""
        if job.state in ENDED:
            return job
        with self._explained():
            self._client.stop_job(job.id)
        deadline = time.monotonic() + timeout
        while (now := self._now(job.id)).state not in ENDED:
            if time.monotonic() > deadline:
                raise UserError(
                    f"Job {job.id} is still {now.state} {timeout:.0f} s after the request to stop; see "
                    f"`swav logs {shlex.quote(job.name)} --address {self.address}`."
                )
            time.sleep(0.5)
        return now

    def _listed(self) -> list[Any]:
        with self._explained():
            return list(self._client.list_jobs())

    def _now(self, job_id: str) -> Job:
        with self._explained():
            return self._job(self._client.get_job_info(job_id))

    def _job(self, details: Any) -> Job:
        state, code = str(details.status.value).lower(), getattr(details, "driver_exit_code", None)
        if state == "failed" and code in _STOPPED_BY_SIGNAL:
            state = "stopped"  # Ray reports a job stopped in its first seconds as failed
        started = details.start_time / 1000 if details.start_time else None
        return Job(details.submission_id, details.metadata["run"], state, code, started, details.message or "")

    def _with_absolute_paths(self, config: Config) -> Config:
        """The configuration with absolute paths. Raises UsageError for relative paths if the cluster is on another machine."""
        tree = config.model_dump(mode="json")
        if not self._is_here():
            relative = [
                p
                for p in (
                    *(p.removeprefix("@") for p in config.data.patterns),
                    config.data.index,
                    config.data.exclude,
                    config.data.sample_log,
                    config.run.out,
                )
                if p and "://" not in p and not p.startswith(("/", "pipe:"))
            ]
            if relative:
                raise UsageError(
                    f"'{relative[0]}' is a path on this machine, but the cluster at {self.address} is another one. "
                    f"Give an absolute path or a URL that all its nodes can read."
                )
            if config.run.out is None:
                raise UsageError(
                    f"Set run.out to a folder that all nodes of the cluster at {self.address} can write, "
                    f"for example run.out=/shared/runs."
                )
        tree["data"]["sources"] = [
            {**source, "pattern": _absolute(source["pattern"])} if isinstance(source, dict) else _absolute(source)
            for source in tree["data"]["sources"]
        ]
        tree["run"]["out"] = str(runs_folder(config.run.out))
        tree["tracking"]["uri"] = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        return with_absolute_paths(from_tree(tree))

    def _is_here(self) -> bool:
        host = urlsplit(self.address).hostname or ""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return host == "localhost"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(_explanation(self.address, error)) from error


def _explanation(address: str, error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "uthentication" in type(error).__name__ + str(error):
        return (
            f"The Ray cluster at {address} requires a token ({first}). Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            f"RAY_AUTH_TOKEN_PATH to the cluster's token; `ray get-auth-token --generate` creates one."
        )
    return (
        f"The request to the Ray cluster at {address} failed ({first}). Check that the cluster runs and that --address is the "
        f"URL of its dashboard, usually port 8265."
    )


def _free_id(name: str, taken: Collection[str]) -> str:
    return next(i for i in itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2))) if i not in taken)


def _entrypoint(arguments: str) -> str:
    """Shell command that runs this environment's `swav` where the head has the same path, else the head's own `swav`."""
    ours = shlex.quote(str(Path(sys.executable).parent / "swav"))
    return f"if [ -x {ours} ]; then exec {ours} {arguments}; else exec swav {arguments}; fi"


def _absolute(pattern: str) -> str:
    if "://" in pattern or pattern.startswith("pipe:"):
        return pattern
    at = "@" if pattern.startswith("@") else ""
    return at + os.path.abspath(os.path.expanduser(pattern.removeprefix("@")))
