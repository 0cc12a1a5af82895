"""Where a run stands, and taking it up from its newest whole checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from swav_platform.config import Config
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.errors import UsageError, UserError
from swav_platform.methods.comm import Comm
from swav_platform.runs.folder import RunFolder
from swav_platform.training.checkpoints import snapshots
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.step import Learner

log = logging.getLogger("swav")


@dataclass
class Run:
    """After `steps` finished steps: losses of the first and the last one, positions whose own sample was refused."""

    steps: int = 0
    loss_first: float = float("nan")
    loss_last: float = float("nan")
    quarantined: int = 0
    checkpoint: Path | None = None
    ledger: Ledger = field(default_factory=Ledger)

    def state(self, config: Config, identity: Mapping[str, str]) -> dict[str, Any]:
        """What state.json of a checkpoint holds beside the number of steps."""
        return {
            "cursor": self.steps * config.rows_per_step,
            "identity": dict(identity),
            "loss_first": self.loss_first,
            "loss_last": self.loss_last,
            "quarantined": self.quarantined,
        }


def begin(learner: Learner, folder: Path, identity: Mapping[str, str], comm: Comm, resume: bool) -> Run:
    """A new run, or the one of the newest whole checkpoint in `folder`, with which `learner` is brought up to date.

    Raises UserError if there is a run but `resume` is not asked for, if it was another configuration's or another index's, and
    if ranks see different checkpoints.
    """
    newest = _agreed(folder, comm)
    if newest is None:
        return Run()
    if not resume:
        raise UserError(
            f"{folder} already holds a run of {checkpoints.steps_of(newest)} steps. Go on with it by --resume, or give the new run "
            f"another name (run.name)."
        )
    snapshot = checkpoints.load(newest)
    state = snapshot.state
    _check_identity(newest, state["identity"], identity)
    snapshots.restore(learner, snapshot, comm)
    ledger = Ledger.from_bytes(snapshot.ledger)
    return Run(snapshot.steps, state["loss_first"], state["loss_last"], state["quarantined"], newest, ledger)


def identity(config: Config, index_digest: str) -> dict[str, str]:
    """What a run is of: the first two must stay as they are, the others are told of when they change."""
    from swav_platform.images.decoding.decode import codec_fingerprint  # brings image libraries with it

    return {
        "config_digest": config.digest(),
        "index_digest": index_digest,
        "codec": codec_fingerprint(),
        "torch": torch.__version__,
        "code": code_version(),
    }


def code_version() -> str:
    try:
        return version("swav-platform")
    except PackageNotFoundError:
        return "source"


def known_run(folder: RunFolder, config: Config, resume: bool) -> dict[str, Any]:
    """run.json of the run to go on with; empty for a run that is new or came to no checkpoint. Nothing is written.

    Raises UsageError if there is a run but `resume` is not asked for, UserError if it has other settings.
    """
    if not folder.exists() or (folder.summary() is None and checkpoints.latest_valid(folder.checkpoints) is None):
        return {}
    if not resume:
        raise UsageError(f"Run {folder.name} exists in {folder.path.parent}; go on with it by --resume, or take another --name.")
    known = folder.info()
    if known["config_digest"] != config.digest():
        raise UserError(
            f"Run {folder.name} was started with other settings ({_difference(folder.config(), config)}), so its checkpoints do not fit. "
            f"Resume with the settings in {folder.path}/config.yaml, or start a new run under another --name."
        )
    return known


def _difference(old: Config, new: Config) -> str:
    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    free = ("run.", "tracking.")
    changed = [
        f"{k}: {before.get(k)} -> {after.get(k)}"
        for k in sorted(before | after)
        if before.get(k) != after.get(k) and not k.startswith(free)
    ]
    return ", ".join(changed[:5])


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _agreed(folder: Path, comm: Comm) -> Path | None:
    """The newest whole checkpoint, which must be the same one for every rank."""
    newest = checkpoints.latest_valid(folder)
    mine = -1 if newest is None else checkpoints.steps_of(newest)
    chosen = int(comm.max(torch.tensor([mine]))[0])
    if int(comm.sum(torch.tensor([int(mine == chosen)]))[0]) != comm.size:
        raise UserError(
            f"Not every worker sees the same checkpoints in {folder} (this one: {newest or 'none'}; another one: {chosen} steps). "
            f"The run's folder must be on storage that all machines share; set run.out to such a place."
        )
    return newest


def _check_identity(path: Path, saved: Mapping[str, Any], now: Mapping[str, str]) -> None:
    for key, what in (("config_digest", "configuration"), ("index_digest", "index")):
        if saved[key] != now[key]:
            raise UserError(
                f"{path} was made with another {what} ({saved[key]}, now {now[key]}), so going on from it would give neither run's "
                f"results. Restore the old {what}, or start under another run.name."
            )
    for key in ("codec", "torch", "code"):
        if saved.get(key) != now[key]:
            log.warning("%s was made with another %s (%s, now %s): losses may differ.", path, key, saved.get(key), now[key])
