"""The folder of a run: what lies where, how it is found by name, and who may write to it."""

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


@dataclass(frozen=True)
class RunFolder:
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
        """Warnings of the leading worker."""
        return self.path / "worker.log"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.parquet"

    @property
    def package(self) -> Path:
        """The model as it is served."""
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
                f"{self.path}/run.json can't be read ({error}), so {self.path} is not a whole run; name another run."
            ) from None

    def summary(self) -> dict[str, Any] | None:
        """What `swav pretrain` reported when the run was done; None before. Raises UserError."""
        path = self.path / "summary.json"
        try:
            return dict(json.loads(path.read_text())) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} can't be read ({error}). Delete it and resume the run with --resume: that writes it anew."
            ) from None

    def losses(self) -> list[float]:
        """Of each step that was written down."""
        return [json.loads(line)["loss"] for line in self.metrics.read_text().splitlines()]

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
        """config.yaml and run.json. index: of the version that the run learns from. created: seconds since 1970, else now."""
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
        """Keeps a second command from working on the same run. Raises UserError."""
        with _locked(self.path / ".lock", wait=0) as mine:
            if not mine:
                raise UserError(
                    f"Run {self.name} in {self.path.parent} is running already; wait for it, stop it, or take another --name."
                )
            yield

    @contextlib.contextmanager
    def written(self, wait: float = 60.0) -> Iterator[None]:
        """Keeps what is left of a killed attempt from writing beside the new one: its leading worker lives on for some seconds."""
        with _locked(self.path / ".writer", wait) as mine:
            if not mine:
                raise UserError(
                    f"A worker of an earlier attempt still writes to {self.path} after {wait:.0f} s. End its process, then go on with --resume."
                )
            yield


@contextlib.contextmanager
def _locked(path: Path, wait: float) -> Iterator[bool]:
    """Whether the lock was had within `wait` seconds; it goes with the process, however that ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"The run's folder {path.parent} can't be written ({error.strerror}); choose another one with --out or mend its permissions."
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
    """Where runs lie: `out`, else SWAV_OUT, else ./runs; absolute."""
    return Path(out or os.environ.get("SWAV_OUT") or "runs").expanduser().absolute()


def find(run: str, out: str | None = None) -> RunFolder:
    """The run of a name or path: a name in the folder of the runs, a run's folder, or a folder with one run in it.

    Without `out`, a name is also looked for one folder down. Raises UsageError for none and for several.
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
                f"There are several runs '{run}' ({', '.join(str(p.parent) for p in below)}); name the folder of one."
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
        f"There is no run '{run}' (looked at {looked}).{near_run(run, runs_folder(out))} Name a run's folder, or say with --out where runs lie."
    )


def near_run(name: str, runs: Path) -> str:
    """' Did you mean …?' with the run in `runs` whose name is nearest; empty if none is near."""
    near = difflib.get_close_matches(name, [path.parent.name for path in runs.glob("*/run.json")], 1)
    return f" Did you mean {near[0]}?" if near else ""
