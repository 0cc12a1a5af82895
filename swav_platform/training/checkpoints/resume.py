"""Progress of a run, and resuming from its newest valid checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from swav_platform.config import Config
from swav_platform.config.table import settings
from swav_platform.errors import UsageError, UserError
from swav_platform.images.look import Look
from swav_platform.methods.comm import Comm
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.storage import Place, join
from swav_platform.training.checkpoints import snapshots
from swav_platform.training.checkpoints import store as checkpoints
from swav_platform.training.checkpoints.store import Snapshot
from swav_platform.training.collectives import all_or_none
from swav_platform.training.learner import Learner

log = logging.getLogger("swav")


@dataclass
class Run:
    """A run after `steps` finished steps.

    quarantined: number of positions whose own sample was refused. looks: number of positions by each `Look` of their image.
    """

    steps: int = 0
    loss_first: float = float("nan")
    loss_last: float = float("nan")
    quarantined: int = 0
    looks: tuple[int, ...] = (0,) * len(Look)
    checkpoint: Place | None = None
    ledger: bytes = b""  # of a checkpoint of an older version, on rank 0

    def state(self, config: Config, identity: Mapping[str, str]) -> dict[str, Any]:
        """The content of state.json besides the number of steps."""
        return {
            "cursor": self.steps * config.rows_per_step,
            "identity": dict(identity),
            "loss_first": self.loss_first,
            "loss_last": self.loss_last,
            "quarantined": self.quarantined,
            "looks": list(self.looks),
        }

    @property
    def blank(self) -> int:
        """Number of positions whose image is nearly black, nearly white or of one colour."""
        return sum(count for look, count in zip(Look, self.looks, strict=True) if look.blank)


def begin(learner: Learner, folder: Place, identity: Mapping[str, str], comm: Comm, resume: bool) -> Run:
    """Starts a run, or restores `learner` from the newest valid checkpoint in `folder`.

    Rank 0 reads it and sends it to the others, which need not see the folder.
    Raises UserError on all ranks if there is a checkpoint but `resume` is false, or if it has another configuration or index.
    """
    found: list[tuple[Place, Snapshot]] = []

    def read() -> None:
        if comm.rank == 0 and (newest := checkpoints.newest(folder)) is not None:
            _check_resumable(folder, newest, identity, resume)
            found.append(newest)

    all_or_none(read, comm)
    if not int(comm.broadcast(torch.tensor([len(found)]))[0]):
        return Run()
    snapshot = snapshots.broadcast(found[0][1] if found else None, comm)
    snapshots.restore(learner, snapshot, comm)
    path = join(folder, checkpoints.name_of(snapshot.steps))
    ledger, state = found[0][1].ledger if found else b"", snapshot.state
    looks = tuple(state.get("looks", Run.looks))  # absent in older checkpoints
    return Run(snapshot.steps, state["loss_first"], state["loss_last"], state["quarantined"], looks, path, ledger)


def _check_resumable(folder: Place, newest: tuple[Place, Snapshot], identity: Mapping[str, str], resume: bool) -> None:
    path, snapshot = newest
    if not resume:
        raise UserError(
            f"{folder} already holds a run of {snapshot.steps} steps. Resume it with --resume, or give the new run another name (run.name)."
        )
    _check_identity(path, snapshot.state["identity"], identity)


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
        raise UsageError(f"Run {folder.name} exists in {folder.runs}. Resume it with --resume, or choose another --name.")
    known = folder.info()
    if known["config_digest"] != config.digest():
        raise UserError(
            f"Run {folder.name} has other settings ({_difference(folder.config(), config)}), so its checkpoints do not fit. "
            f"Resume with the settings in {folder.place}/config.yaml, or start a new run under another --name."
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


def _check_identity(path: Place, saved: Mapping[str, Any], now: Mapping[str, str]) -> None:
    for key, what in (("config_digest", "configuration"), ("index_digest", "index")):
        if saved[key] != now[key]:
            raise UserError(
                f"{path} has another {what} ({saved[key]}, now {now[key]}), so resuming it would mix the results of two runs. "
                f"Restore the old {what}, or start a run under another run.name."
            )
    for key in ("codec", "torch", "code", "precision"):
        if key in now and saved.get(key, now[key] if key == "precision" else None) != now[key]:
            log.warning(
                "%s was written with another version of %s (%s, now %s); losses may differ slightly.",
                path,
                key,
                saved.get(key),
                now[key],
            )
