"""A run: its files on disk or in an object store, its one writer, and finding it by name."""

from __future__ import annotations

import contextlib
import difflib
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swav_platform.config import Config, from_tree, load
from swav_platform.config.secrets import tree_without_secrets
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.health_file import read_health
from swav_platform.runs.lease import Held, leased
from swav_platform.runs.locks import locked
from swav_platform.runs.metrics import read_metrics
from swav_platform.runs.storage import Place, Storage, base_name, is_url, join, storage_of


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run. `path.name` is the run's name.

    path: a folder on this machine. If `url` is set, the run is in an object store and `path` is a working copy of parts of it.
    """

    path: Path
    url: str | None = None

    @classmethod
    def at(cls, place: Place) -> RunFolder:
        """The run at a folder or URL, which need not exist."""
        return cls(_working_copy(place), place) if isinstance(place, str) else cls(place)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def place(self) -> Place:
        """Where the run is."""
        return self.url or self.path

    @property
    def runs(self) -> Place:
        """The folder or URL of all runs."""
        return self.url.rpartition("/")[0] if self.url else self.path.parent

    @property
    def storage(self) -> Storage:
        return storage_of(self.place)

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def checkpoints(self) -> Place:
        return join(self.place, "checkpoints")

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
        """The folder with the parts of the ledger on the machine of rank 0; `data.ledger.parts` writes and reads them."""
        return self.path / "ledger"

    @property
    def package(self) -> Path:
        """The model package, for readers: a copy on this machine if the run is in an object store."""
        return self.fetched("model")

    @property
    def embeddings(self) -> Path:
        """For readers, like `package`."""
        return self.fetched("embeddings")

    def readable_ledger(self) -> Path:
        """The ledger on this machine, for `Ledger.read`. That of an object store is downloaded."""
        return self.ledger if self.url is None else self.fetched("ledger")

    def has(self, name: str) -> bool:
        """Whether the run has a file."""
        return (self.path / name).is_file() if self.url is None else self.storage.look(name) is not None

    def fetched(self, name: str) -> Path:
        """A folder of the run on this machine. Downloads it from an object store; do not write to it."""
        if self.url is None:
            return self.path / name
        from swav_platform.data.storage.copies import local_copy_of_folder  # imports pyarrow

        return local_copy_of_folder(str(join(self.url, name)))

    def publish(self, name: str) -> None:
        """Uploads a file or folder of `path` to the object store, manifests last. A folder on disk needs nothing."""
        if self.url is not None:
            root = self.path / name
            files = [path for path in root.rglob("*") if path.is_file()] if root.is_dir() else [root]
            for file in sorted(files, key=lambda path: (path.suffix == ".json", path.name == "manifest.json", path)):
                self.storage.put(file.relative_to(self.path).as_posix(), file)

    def share_index(self, place: str) -> str:
        """A place of an index that every node sees. The index of a run in an object store is uploaded to it."""
        if self.url is None or is_url(place) or not Path(place).is_relative_to(self.index):
            return place
        version = Path(place).relative_to(self.path)
        stored = self.storage.entries(f"{version}/")
        for file in sorted(path for path in Path(place).iterdir() if path.is_file()):
            key = file.relative_to(self.path).as_posix()
            if stored.get(key) != file.stat().st_size:  # a version never changes
                self.storage.put(key, file)
        for file in sorted(path for path in self.index.iterdir() if path.is_file()):
            self.storage.put(file.relative_to(self.path).as_posix(), file)
        return str(join(self.url, version.as_posix()))

    def bring_index(self) -> None:
        """Copies the index of a run in an object store to this machine, so that a resumed run does not read all shards again."""
        if self.url is not None and not self.index.is_dir():
            shutil.copytree(self.fetched("index"), self.index)

    def exists(self) -> bool:
        return self.has("run.json")

    def info(self) -> dict[str, Any]:
        """run.json: name, run_id, index, index_digest, samples, config_digest, tracking_uri, model_name, created."""
        try:
            return dict(json.loads(self.storage.get("run.json")))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.place}/run.json can't be read ({error}), so {self.place} is not a complete run; choose another run."
            ) from None

    def summary(self) -> dict[str, Any] | None:
        """The report of `swav pretrain` for a finished run; None before. Raises UserError for an unreadable file."""
        try:
            return dict(json.loads(self.storage.get("summary.json")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.place}/summary.json can't be read ({error}). Delete it and resume the run with --resume, which writes it again."
            ) from None

    def losses(self) -> list[float]:
        """Losses of all recorded steps."""
        return [line["loss"] for line in read_metrics(self.path)]

    def config(self) -> Config:
        if self.url is None:
            return load(self.path / "config.yaml")
        return from_tree(yaml.safe_load(self.storage.get("config.yaml")))

    def write(
        self,
        config: Config,
        *,
        index: Place,
        index_digest: str,
        samples: int,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        created: float | None = None,
    ) -> None:
        """Writes config.yaml and run.json. index: place of the index version. created: seconds since 1970; now if None."""
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
        self.storage.put(
            "config.yaml",
            yaml.safe_dump(tree_without_secrets(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True).encode(),
        )
        self.storage.put("run.json", json.dumps(tree_without_secrets(info), indent=1).encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as finished."""
        self.storage.put("summary.json", json.dumps(summary).encode())

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Confirm]:
        """Reserves the run for one command and yields what must be called before a write that makes others valid.

        Raises UserError if another command holds the run.
        """
        if self.url is not None:
            try:
                with leased(self.storage, LEASE) as lease:
                    yield lease.confirm
                return
            except Held as held:
                raise UserError(f"{self._running(f' ({held})')}") from None
        with locked(self.path / ".lock", wait=0) as mine:
            if not mine:
                raise UserError(self._running())
            yield _nothing

    @contextlib.contextmanager
    def written(self, wait: float = 60.0) -> Iterator[Confirm]:
        """Reserves the run for one rank 0 and yields what must be called before a write that makes others valid.

        Rank 0 of a killed attempt may live on for some seconds and must not write meanwhile. On a disk, this one waits for its end;
        in an object store, the other one finds that it has lost its right to write.
        """
        if self.url is not None:
            with leased(self.storage, WRITER, take_over=True) as lease:
                yield lease.confirm
            return
        with locked(self.path / ".writer", wait) as mine:
            if not mine:
                raise UserError(
                    f"A worker of an earlier attempt still writes to {self.path} after {wait:.0f} s. Stop its process, then resume with --resume."
                )
            yield _nothing

    def _running(self, holder: str = "") -> str:
        return f"Run {self.name} in {self.runs} is already running{holder}. Wait for it, stop it, or choose another --name."


LEASE = "LEASE"  # of the command
WRITER = "LEASE-rank-0"

Confirm = Callable[[], None]
"""Raises UserError if this process has lost its right to write to the run."""


def _nothing() -> None:
    """A lock of the operating system can't be lost."""


def _working_copy(url: str) -> Path:
    """The folder on this machine for files of a run in an object store."""
    runs = url.rstrip("/").rpartition("/")[0]
    return working_copies(runs) / base_name(url)


def working_copies(runs: str) -> Path:
    """The folder on this machine for files of the runs at a URL."""
    from swav_platform.data.storage.cache import cache_folder  # imports pyarrow

    return cache_folder() / "runs" / hashlib.sha256(runs.encode()).hexdigest()[:12]


def runs_folder(out: str | None) -> Place:
    """The place of all runs: `out`, or SWAV_OUT, or ./runs; absolute."""
    given = out or os.environ.get("SWAV_OUT") or "runs"
    if is_url(given):
        return str(storage_of(given).place)
    return Path(given).expanduser().absolute()


def runs_on_disk(out: str | None) -> Path:
    """Like `runs_folder`, for files that must be on a disk: a folder of this machine if the runs are in an object store."""
    place = runs_folder(out)
    return working_copies(place) if isinstance(place, str) else place


def find(run: str, out: str | None = None) -> RunFolder:
    """The run with a name or place. run: a name in the folder of all runs, a run's folder or URL, or a folder that holds a single run.

    Without `out`, also searches one folder below the current one. Raises UsageError for no match and for several.
    """
    given: Place = str(storage_of(run).place) if is_url(run) else Path(run)
    places = [given]
    if "/" not in run:
        places.insert(0 if out else 1, join(runs_folder(out), run))
    for place in places:
        found = RunFolder.at(place if isinstance(place, str) else place.absolute())
        if found.exists():
            return found
    if "/" not in run and not out:
        below = sorted(Path().glob(f"*/{glob.escape(run)}/run.json"))
        if len(below) > 1:
            raise UsageError(
                f"There are several runs '{run}' ({', '.join(str(p.parent) for p in below)}); name the folder of one of them."
            )
        if below:
            return RunFolder(below[0].parent.absolute())
    inside = _runs_in(given)
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise UsageError(f"{run} holds several runs ({', '.join(p.name for p in inside)}); name one of them.")
    for place in places:
        if isinstance(place, Path) and (health := read_health(place)) is not None:
            raise UserError(f"Run {place.name} did not start: {health.because}")
    looked = ", ".join(str(p) for p in places)
    raise UsageError(
        f"There is no run '{run}' (looked at {looked}).{near_run(base_name(run), runs_folder(out))} Name a run's folder, or set the folder of runs with --out."
    )


def _runs_in(place: Place) -> list[RunFolder]:
    found = [
        RunFolder.at(join(place if isinstance(place, str) else place.absolute(), name)) for name in storage_of(place).folders()
    ]
    return [run for run in found if run.exists()]


def near_run(name: str, runs: Place) -> str:
    """' Did you mean …?' with the most similar name of a run in `runs`; empty if no name is similar."""
    near = difflib.get_close_matches(name, storage_of(runs).folders(), 3)
    found = next((name for name in near if RunFolder.at(join(runs, name)).exists()), None)
    return f" Did you mean {found}?" if found else ""
