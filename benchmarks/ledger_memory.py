"""Does the memory of a rank grow with the run? The records of 1,000,000 synthetic positions, of which 5 % are bad.

    python benchmarks/ledger_memory.py [--positions 1000000] [--bad 0.05]

Runs what a rank keeps besides its weights (`training.journal`, `training.quarantine`), with a checkpoint every 100 steps, and reads its
resident memory. The last line is a JSON object: `growth_share` (memory at the end over memory after a quarter, minus 1), `events`
(of the ledger that was written), `flat` (whether the growth is below 5 %).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swav_platform.config import Config
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.data.ledger.parts import read_events
from swav_platform.methods.comm import LocalComm
from swav_platform.training.counters import Counters
from swav_platform.training.journal import Journal
from swav_platform.training.quarantine import Recent

BATCH, CHECKPOINT_EVERY = 256, 100


@dataclass(frozen=True)
class FakeRow:
    """What the journal reads of a row."""

    events: list[Event] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1_000_000)
    parser.add_argument("--bad", type=float, default=0.05)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options.positions, options.bad)))
    return 0


def measure(folder: Path, positions: int, share: float) -> dict[str, Any]:
    steps, rng, recent = positions // BATCH, random.Random(0), Recent()
    journal = Journal(Config(), folder, LocalComm())
    journal.open(0)
    memory: list[int] = []
    events = 0
    for step in range(steps):
        bad = [p for p in range(step * BATCH, (step + 1) * BATCH) if rng.random() < share]
        journal.rows(step, [FakeRow([event(position, rng) for position in bad])])  # type: ignore[list-item]
        journal.line({"step": step, "loss": rng.random(), "lr": 0.1})
        outcomes = [0] * len(Outcome)
        outcomes[Outcome.OK], outcomes[Outcome.CORRUPT] = BATCH - len(bad), len(bad)
        recent.add(Counters(tuple(outcomes), trained=BATCH))
        events += len(bad)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            journal.gather(step + 1)
            journal.flush()
            journal.commit(step + 1)
            memory.append(resident())
    journal.close()
    assert sum(1 for _ in read_events(folder / "ledger")) == events
    growth = memory[-1] / memory[len(memory) // 4] - 1
    return {
        "positions": steps * BATCH,
        "events": events,
        "memory_after_a_quarter": memory[len(memory) // 4],
        "memory_at_the_end": memory[-1],
        "growth_share": round(growth, 4),
        "flat": growth < 0.05,
    }


def event(position: int, rng: random.Random) -> Event:
    """Every bad sample is a new one, with a thumbnail."""
    return Event(
        position, 0, position, f"{position:09d}", f"{position % 97:06d}.tar", Outcome.CORRUPT, "made up", rng.randbytes(1500)
    )


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
