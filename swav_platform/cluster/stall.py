"""Judges what the ranks of a group tell: who keeps the others waiting, and whether to wait on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXPLAIN_SECONDS = 30.0  # longer waits are explained
SILENT_SECONDS, HOPELESS_SECONDS = 20.0, 40.0
"""After the first, a rank that tells nothing is named; after the second, the group restarts. Ranks tell each second, from a thread."""


@dataclass(frozen=True)
class Beat:
    """What a rank tells. collectives: number of calls since the group's start; a rank with fewer than others keeps these waiting."""

    rank: int
    pid: int
    node: str
    host: str
    step: int
    doing: str
    collectives: int


@dataclass(frozen=True)
class Seen:
    """silent: seconds since the rank's last beat. same: seconds since it last told something new."""

    beat: Beat
    silent: float
    same: float


@dataclass(frozen=True)
class Stall:
    """waiting_for: words for the user. late: the ranks that keep the others waiting. restart: do not wait any longer."""

    waiting_for: str
    late: tuple[Beat, ...] = ()
    named: bool = False
    restart: bool = False


def stall(seen: Sequence[Seen], workers: int, hang_timeout: float) -> Stall | None:
    """None while the group makes progress, and during the first EXPLAIN_SECONDS without."""
    silent = [s for s in seen if s.silent > SILENT_SECONDS]
    if silent:
        longest = max(s.silent for s in silent)
        words = f"{_names(silent)}: no sign of life for {longest:.0f} s, so the process is stopped or its node is not reachable"
        return Stall(words, tuple(s.beat for s in silent), named=True, restart=longest > HOPELESS_SECONDS)
    idle = min((s.same for s in seen), default=0.0)
    if idle < EXPLAIN_SECONDS:
        return None
    if len(seen) < workers:
        return Stall(f"workers to start: {len(seen)} of {workers} run")
    return _standstill(seen, idle, hang_timeout)


def _standstill(seen: Sequence[Seen], idle: float, hang_timeout: float) -> Stall:
    """No rank has told anything new for `idle` seconds."""
    progress = [(s.beat.step, s.beat.collectives) for s in seen]
    late = [s for s, p in zip(seen, progress, strict=True) if p == min(progress)]
    doing, step, beats = late[0].beat.doing, late[0].beat.step, tuple(s.beat for s in late)
    if any(s.beat.doing == "rows" for s in late):
        return Stall(f"rows of step {step}: data tasks have made none for {_names(late)}", beats)
    if doing == "starting":
        return Stall(f"{_names(late)} to start", beats)
    if doing == "checkpoint":
        return Stall(f"the checkpoint after step {step} to be written", beats)
    others = len(late) < len(seen)
    words = f"{_names(late)} in step {step}" + (", which the other workers have passed" if others else "")
    return Stall(words, beats, named=others, restart=idle > hang_timeout)


def _names(seen: Sequence[Seen]) -> str:
    beats = [s.beat for s in seen]
    if len(beats) > 4:
        return f"workers {', '.join(str(b.rank) for b in beats[:4])} and {len(beats) - 4} more"
    return " and ".join(f"worker {b.rank} (process {b.pid} on {b.host})" for b in beats)
