"""The folder of a run: its files, its locks, and finding it by name."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import glob
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swav_platform.atomic import write_text
from swav_platform.config import Config, load
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.metrics import read_metrics


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run. `path.name` is the run's name."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.path / "metrics.jsonl"

    @property
    def worker_log(self) -> Path:
        """Warnings of rank 0."""
        return self.path / "worker.log"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.parquet"

    @property
    def package(self) -> Path:
        """The model package."""
        return self.path / "model"

    @property
    def embeddings(self) -> Path:
        return self.path / "embeddings"

    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    def info(self) -> dict[str, Any]:
        """run.json: name, run_id, index, index_digest, samples, config_digest, tracking_uri, model_name, created."""
        try:
            return dict(json.loads((self.path / "run.json").read_text()))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path}/run.json can't be read ({error}), so {self.path} is not a complete run; choose another run."
            ) from None

    def summary(self) -> dict[str, Any] | None:
        """The report of `swav pretrain` for a finished run; None before. Raises UserError for an unreadable file."""
        path = self.path / "summary.json"
        try:
            return dict(json.loads(path.read_text())) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} can't be read ({error}). Delete it and resume the run with --resume, which writes it again."
            ) from None

    def losses(self) -> list[float]:
        """Losses of all recorded steps."""
        return [line["loss"] for line in read_metrics(self.path)]

    def config(self) -> Config:
        return load(self.path / "config.yaml")

    def write(
        self,
        config: Config,
        *,
        index: Path,
        index_digest: str,
        samples: int,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        created: float | None = None,
    ) -> None:
        """Writes config.yaml and run.json. index: folder of the index version. created: seconds since 1970; now if None."""
        info = {
            "name": self.name,
            "run_id": run_id,
            "index": str(index),
            "index_digest": index_digest,
            "samples": samples,
            "config_digest": config.digest(),
            "tracking_uri": tracking_uri,
            "model_name": config.tracking.model or self.name,
            "created": created or time.time(),
        }
        write_text(self.path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        write_text(self.path / "run.json", json.dumps(info, indent=1))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Locks the run for one command. Raises UserError if another command holds the lock."""
        with _locked(self.path / ".lock", wait=0) as mine:
            if not mine:
                raise UserError(
                    f"Run {self.name} in {self.path.parent} is already running. Wait for it, stop it, or choose another --name."
                )
            yield

    @contextlib.contextmanager
    def written(self, wait: float = 60.0) -> Iterator[None]:
        """Locks the run for one rank 0. Rank 0 of a killed attempt may live on for some seconds and must not write meanwhile."""
        with _locked(self.path / ".writer", wait) as mine:
            if not mine:
                raise UserError(
                    f"A worker of an earlier attempt still writes to {self.path} after {wait:.0f} s. Stop its process, then resume with --resume."
                )
            yield


@contextlib.contextmanager
def _locked(path: Path, wait: float) -> Iterator[bool]:
    """Yields whether the lock was acquired within `wait` seconds. The operating system releases it when the process ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"The run's folder {path.parent} is not writable ({error.strerror}). Choose another one with --out, or change its permissions."
        ) from None
    try:
        yield _try_lock(lock, time.monotonic() + wait)
    finally:
        os.close(lock)


def _try_lock(lock: int, deadline: float) -> bool:
    while True:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)


def runs_folder(out: str | None) -> Path:
    """The folder of all runs: `out`, or SWAV_OUT, or ./runs; absolute."""
    return Path(out or os.environ.get("SWAV_OUT") or "runs").expanduser().absolute()


def find(run: str, out: str | None = None) -> RunFolder:
    """The run with a name or path. run: a name in the folder of all runs, a run's folder, or a folder that holds a single run.

    Without `out`, also searches one folder below the current one. Raises UsageError for no match and for several.
    """
    places = [Path(run)]
    if "/" not in run:
        places.insert(0 if out else 1, runs_folder(out) / run)
    for place in places:
        if (place / "run.json").is_file():
            return RunFolder(place.absolute())
    if "/" not in run and not out:
        below = sorted(Path().glob(f"*/{glob.escape(run)}/run.json"))
        if len(below) > 1:
            raise UsageError(
                f"There are several runs '{run}' ({', '.join(str(p.parent) for p in below)}); name the folder of one of them."
            )
        if below:
            return RunFolder(below[0].parent.absolute())
    inside = sorted(Path(run).glob("*/run.json"))
    if len(inside) == 1:
        return RunFolder(inside[0].parent.absolute())
    if inside:
        raise UsageError(f"{run} holds several runs ({', '.join(p.parent.name for p in inside)}); name one of them.")
    looked = ", ".join(str(p) for p in places)
    raise UsageError(
        f"There is no run '{run}' (looked at {looked}).{near_run(run, runs_folder(out))} Name a run's folder, or set the folder of runs with --out."
    )


def near_run(name: str, runs: Path) -> str:
    """' Did you mean …?' with the most similar name of a run in `runs`; empty if no name is similar."""
    near = difflib.get_close_matches(name, [path.parent.name for path in runs.glob("*/run.json")], 1)
    return f" Did you mean {near[0]}?" if near else ""
