"""Progress of a run, and resuming from its newest valid checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from swav_platform.config import Config
from swav_platform.config.table import settings
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.errors import UsageError, UserError
from swav_platform.methods.comm import Comm
from swav_platform.runs.folder import RunFolder
from swav_platform.training.checkpoints import snapshots
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.learner import Learner

log = logging.getLogger("swav")


@dataclass
class Run:
    """A run after `steps` finished steps. quarantined: number of positions whose own sample was refused."""

    steps: int = 0
    loss_first: float = float("nan")
    loss_last: float = float("nan")
    quarantined: int = 0
    checkpoint: Path | None = None
    ledger: Ledger = field(default_factory=Ledger)

    def state(self, config: Config, identity: Mapping[str, str]) -> dict[str, Any]:
        """The content of state.json besides the number of steps."""
        return {
            "cursor": self.steps * config.rows_per_step,
            "identity": dict(identity),
            "loss_first": self.loss_first,
            "loss_last": self.loss_last,
            "quarantined": self.quarantined,
        }


def begin(learner: Learner, folder: Path, identity: Mapping[str, str], comm: Comm, resume: bool) -> Run:
    """Starts a run, or restores `learner` from the newest valid checkpoint in `folder`.

    Raises UserError if there is a checkpoint but `resume` is false, if it has another configuration or index, or if ranks see
    different checkpoints.
    """
    newest = _agreed(folder, comm)
    if newest is None:
        return Run()
    if not resume:
        raise UserError(
            f"{folder} already holds a run of {checkpoints.steps_of(newest)} steps. Resume it with --resume, or give the new run "
            f"another name (run.name)."
        )
    snapshot = checkpoints.load(newest)
    state = snapshot.state
    _check_identity(newest, state["identity"], identity)
    snapshots.restore(learner, snapshot, comm)
    ledger = Ledger.from_bytes(snapshot.ledger)
    return Run(snapshot.steps, state["loss_first"], state["loss_last"], state["quarantined"], newest, ledger)


def identity(config: Config, index_digest: str) -> dict[str, str]:
    """What a checkpoint depends on. On resume the first two must match; a difference in the others is logged as a warning."""
    from swav_platform.images.decoding.decode import codec_fingerprint  # imports image libraries

    return {
        "config_digest": config.digest(),
        "index_digest": index_digest,
        "codec": codec_fingerprint(),
        "torch": torch.__version__,
        "code": code_version(),
    }


def code_version() -> str:
    """Version of the installed package; "source" without one."""
    try:
        return version("swav-platform")
    except PackageNotFoundError:
        return "source"


def known_run(folder: RunFolder, config: Config, resume: bool) -> dict[str, Any]:
    """run.json of the run to resume; empty for a run that is new or has no checkpoint. Writes nothing.

    Raises UsageError if there is a run but `resume` is false, UserError if it has other settings.
    """
    if not folder.exists() or (folder.summary() is None and checkpoints.latest_valid(folder.checkpoints) is None):
        return {}
    if not resume:
        raise UsageError(f"Run {folder.name} exists in {folder.path.parent}. Resume it with --resume, or choose another --name.")
    known = folder.info()
    if known["config_digest"] != config.digest():
        raise UserError(
            f"Run {folder.name} has other settings ({_difference(folder.config(), config)}), so its checkpoints do not fit. "
            f"Resume with the settings in {folder.path}/config.yaml, or start a new run under another --name."
        )
    return known


def _difference(old: Config, new: Config) -> str:
    """The first few settings that differ and change results."""
    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    counts = {each.setting for each in settings() if each.changes_results == "yes"}
    changed = [k for k in sorted(before | after) if before.get(k) != after.get(k) and (k in counts or k.startswith("views."))]
    return ", ".join(f"{k}: {before.get(k)} -> {after.get(k)}" for k in changed[:5]) or "the order of views"


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _agreed(folder: Path, comm: Comm) -> Path | None:
    """The newest valid checkpoint, which must be the same one on every rank."""
    newest = checkpoints.latest_valid(folder)
    mine = -1 if newest is None else checkpoints.steps_of(newest)
    chosen = int(comm.max(torch.tensor([mine]))[0])
    if int(comm.sum(torch.tensor([int(mine == chosen)]))[0]) != comm.size:
        raise UserError(
            f"Workers see different checkpoints in {folder} (this one: {newest or 'none'}; another one: {chosen} steps). "
            f"Set run.out to a folder on storage that all nodes share."
        )
    return newest


def _check_identity(path: Path, saved: Mapping[str, Any], now: Mapping[str, str]) -> None:
    for key, what in (("config_digest", "configuration"), ("index_digest", "index")):
        if saved[key] != now[key]:
            raise UserError(
                f"{path} has another {what} ({saved[key]}, now {now[key]}), so resuming it would mix the results of two runs. "
                f"Restore the old {what}, or start a run under another run.name."
            )
    for key in ("codec", "torch", "code"):
        if saved.get(key) != now[key]:
            log.warning(
                "%s was written with another version of %s (%s, now %s); losses may differ slightly.",
                path,
                key,
                saved.get(key),
                now[key],
            )
