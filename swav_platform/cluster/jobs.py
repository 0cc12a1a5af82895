"""Pretraining as jobs of a Ray cluster, over the Ray Jobs API: submit, look, read, stop, list.

A job's name is its run's name. Each submission of a name gets an id of its own (name, name-2, name-3 …), so that a
run which was lost can be submitted again and goes on from its checkpoints.
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

from swav_platform.cluster.pretrain import placed
from swav_platform.config import Config, from_tree
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.folder import runs_folder

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
READY_SECONDS = 60.0
PATIENCE = 60.0  # seconds that a cluster may be away while its job is followed
ENDED = ("succeeded", "failed", "stopped")
_STOPPED_BY_SIGNAL = (130, 143, -2, -15)
_STEP = re.compile(r"^step (\d+)/(\d+)", re.MULTILINE)
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
    """The Ray cluster behind an address. Each method raises UserError when the address does not answer."""

    def __init__(self, address: str | None) -> None:
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        self.address = address if "://" in address else f"http://{address}"
        place = urlsplit(self.address)
        if place.scheme not in ("http", "https"):
            raise UsageError(
                f"{address} is not the dashboard of a Ray cluster ({place.scheme}:// is for Ray's own clients); "
                f"jobs go by HTTP: --address http://{place.hostname or 'HEAD'}:8265."
            )
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            os.environ.pop(name, None)  # Ray's client would take them before the address that it is given

    @functools.cached_property
    def _client(self) -> Any:
        """Connects when it is first used: what is wrong with a configuration is said before."""
        from ray.job_submission import JobSubmissionClient

        for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        return JobSubmissionClient(self.address)

    def submit(self, config: Config) -> Job:
        """Raises UsageError for a name that runs, or for paths that the cluster can't know."""
        config = self._placed(config)
        name = str(config.run.name)
        known = self.jobs()
        if alive := [job for job in known if job.name == name and job.state not in ENDED]:
            raise UsageError(
                f"Run {name} is {alive[0].state} on {self.address} (job {alive[0].id}); follow it with `swav logs {name} --follow --address {self.address}`, "
                f"stop it with `swav stop {name} --address {self.address}`, or take another --name."
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
        """A head that has just started answers before it can take jobs."""
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
        """All jobs of ours, oldest first."""
        found = [self._job(details) for details in self._listed() if (details.metadata or {}).get("run")]
        return sorted(found, key=lambda job: job.started or 0.0)

    def job(self, name: str) -> Job:
        """The newest job of a run's name, else the job of an id."""
        jobs = self.jobs()
        found = [job for job in jobs if job.name == name] or [job for job in jobs if job.id == name]
        if not found:
            raise UsageError(
                f"There is no job '{name}' on {self.address}; `swav list --address {self.address}` shows those it has."
            )
        return found[-1]

    def logs(self, job: Job) -> str:
        with self._explained():
            return str(self._client.get_job_logs(job.id))

    def report(self, job: Job) -> dict[str, Any]:
        """The keys that `submit`, `status` and `list` print with --json."""
        text = self.logs(job) if job.state != "pending" else ""
        steps, run_ids, errors = _STEP.findall(text), _RUN_ID.findall(text), _ERROR.findall(text)
        return {
            "id": job.id,
            "name": job.name,
            "state": job.state,
            "address": self.address,
            "run_id": run_ids[-1] if run_ids else None,
            "step": int(steps[-1][0]) if steps else None,
            "steps": int(steps[-1][1]) if steps else None,
            "error": errors[-1] if errors and job.state == "failed" else None,
        }

    def follow(self, job: Job, show: Callable[[str], None], poll: float = 1.0) -> Job:
        """Passes new log text to `show` until the job has ended; returns the job as it ended.

        Raises UserError when the cluster has not answered for PATIENCE seconds.
        """
        shown, answered = 0, time.monotonic()
        while True:
            try:
                now = self._now(job.id)
                text = self.logs(now) if now.state != "pending" else ""
            except UserError:
                if time.monotonic() - answered > PATIENCE:
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
        if job.state in ENDED:
            return job
        with self._explained():
            self._client.stop_job(job.id)
        deadline = time.monotonic() + timeout
        while (now := self._now(job.id)).state not in ENDED:
            if time.monotonic() > deadline:
                raise UserError(
                    f"Job {job.id} was told to stop but is still {now.state} after {timeout:.0f} s; look at `swav logs {job.name} --address {self.address}`."
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
            state = "stopped"  # Ray calls a job that was stopped in its first seconds failed
        started = details.start_time / 1000 if details.start_time else None
        return Job(details.submission_id, details.metadata["run"], state, code, started, details.message or "")

    def _placed(self, config: Config) -> Config:
        """Paths as the cluster will see them: a cluster on this machine sees ours, another one only absolute ones."""
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
                    f"'{relative[0]}' is a path on this machine, but {self.address} is another one; name where the cluster finds it, from / on."
                )
            if config.run.out is None:
                raise UsageError(
                    f"Say where on the cluster at {self.address} runs shall lie, on storage that all its nodes see: run.out=/shared/runs."
                )
        tree["data"]["sources"] = [
            {**source, "pattern": _absolute(source["pattern"])} if isinstance(source, dict) else _absolute(source)
            for source in tree["data"]["sources"]
        ]
        tree["run"]["out"] = str(runs_folder(config.run.out))
        tree["tracking"]["uri"] = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        return placed(from_tree(tree))

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
            f"The Ray cluster at {address} wants a token ({first}). Give the one it was started with in RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) "
            f"and RAY_AUTH_MODE=token, in the environment of the cluster and of this command; `ray get-auth-token --generate` makes one."
        )
    return f"The Ray cluster at {address} does not answer or refused ({first}). Check --address (the dashboard's URL, usually port 8265) and that it runs."


def _free_id(name: str, taken: Collection[str]) -> str:
    return next(i for i in itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2))) if i not in taken)


def _entrypoint(arguments: str) -> str:
    """`swav` as this machine has it where the head has that too (one image, or one machine), else the head's own."""
    ours = shlex.quote(str(Path(sys.executable).parent / "swav"))
    return f"if [ -x {ours} ]; then exec {ours} {arguments}; else exec swav {arguments}; fi"


def _absolute(pattern: str) -> str:
    if "://" in pattern or pattern.startswith("pipe:"):
        return pattern
    at = "@" if pattern.startswith("@") else ""
    return at + os.path.abspath(os.path.expanduser(pattern.removeprefix("@")))
