"""Two hundred runs that are killed, resized and begun again: each position exactly once, as in a run that nothing broke.

The state machine of a run without Ray and without images: plan -> rows -> steps on N ranks -> log and ledger -> checkpoint.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Event, Outcome
from swav_platform.data.ledger.sample_log import SampleLog, check
from swav_platform.data.order.mix import MixedPlan, Part
from swav_platform.data.order.plan import Plan, PlanSpec

ROUNDS, PER_TEST = 200, 50
ATTEMPTS = 4


@dataclass(frozen=True)
class Row:
    row: int
    position: np.ndarray
    outcome: np.ndarray
    key: list[str]
    shard: list[str]
    stand_in_for: list[str | None]
    events: list[Event]
    hashes: np.ndarray


@dataclass
class Run:
    """What outlives a kill: `cursor` and `ledger` are those of the last checkpoint."""

    plan: Plan | MixedPlan
    bad: frozenset[int]
    rows_per_step: int
    steps: int
    log: Path
    cursor: int = 0
    ledger: bytes = field(default_factory=lambda: Ledger().to_bytes())

    @property
    def finished(self) -> bool:
        return self.cursor == self.steps * self.rows_per_step

    def go_on(self, ranks: int, checkpoint_every: int, dies_after: int | None, loses: str) -> None:
        """From the cursor to the end, or to death after some steps; then what is not in a checkpoint is gone, or some of
        it: `loses` is "log" (nothing was written), "commit" (the log was, the checkpoint not) or "note" (the checkpoint was
        made, the log does not know)."""
        logs = [SampleLog(self.log, rank) for rank in range(ranks)]
        ledger, began = Ledger.from_bytes(self.ledger), self.cursor
        if began:
            logs[0].commit(began // self.rows_per_step, self.rows_per_step * self.plan.spec.row_size)
        for step in range(began // self.rows_per_step, self.steps):
            events = []
            for number in range(step * self.rows_per_step, (step + 1) * self.rows_per_step):
                row = self.make(number)
                logs[(number - began) % ranks].append(step, row, row.hashes)
                events += row.events
            ledger.add(sorted(events, key=lambda e: (e.position, e.attempt)))
            dies = dies_after is not None and step - began // self.rows_per_step >= dies_after
            if dies and loses == "log":
                return
            if (step + 1) % checkpoint_every == 0 or step + 1 == self.steps or dies:
                for log in logs:
                    log.flush()
                if dies and loses == "commit":
                    return
                self.cursor, self.ledger = (step + 1) * self.rows_per_step, ledger.to_bytes()
                if dies:
                    return
                logs[0].commit(step + 1, self.rows_per_step * self.plan.spec.row_size)

    def make(self, number: int) -> Row:
        spec = self.plan.row(number)
        count = len(spec.samples)
        outcome = np.where(spec.filler, Outcome.FILLER, Outcome.OK).astype(np.uint8)
        keys = [f"k{sample}" for sample in spec.samples]
        stand_in_for: list[str | None] = [None] * count
        events, hashes = [], np.empty(count, np.uint64)
        for slot, (position, own) in enumerate(zip(spec.positions.tolist(), spec.samples.tolist(), strict=True)):
            sample = own
            for attempt in range(ATTEMPTS):
                if sample not in self.bad:
                    break
                events.append(Event(position, attempt, sample, f"k{sample}", "s.tar", Outcome.CORRUPT, "", None))
                outcome[slot] = Outcome.CORRUPT
                sample = self.plan.replacement(position, attempt + 1)
            if sample != own:
                stand_in_for[slot], keys[slot] = keys[slot], f"k{sample}"
            hashes[slot] = xxhash.xxh3_64_intdigest(f"{position} {sample}".encode())
        return Row(number, spec.positions, outcome, keys, ["s.tar"] * count, stand_in_for, events, hashes)


def new_run(chance: random.Random, folder: Path) -> Run:
    samples, row_size = chance.randint(30, 160), chance.choice([4, 8, 16])
    spec = PlanSpec(samples, chance.getrandbits(60), row_size, chance.choice([1, 4, 16]), chance.choice([1, 4, 8]))
    plan: Plan | MixedPlan = Plan(spec)
    if chance.random() < 0.25:
        cut = samples // 3
        plan = MixedPlan(spec, (Part(0, cut, 0.7), Part(cut, samples - cut, 0.3)))
    bad = frozenset(chance.sample(range(samples), chance.randint(0, samples // 20)))
    rows_per_step = chance.randint(1, 8)
    return Run(plan, bad, rows_per_step, plan.rows_per_epoch // rows_per_step + chance.randint(1, 3), folder)


def lines_of(folder: Path) -> list[tuple[object, ...]]:
    """All that the log says but for ranks; a step that was made twice counts once."""
    table = pq.read_table(folder, columns=["step", "row", "position", "sample_key", "outcome", "stand_in_for", "view_hash"])
    return sorted(set(zip(*(column.to_pylist() for column in table.columns), strict=True)), key=lambda line: line[2])


def expected(row: Row, rows_per_step: int) -> list[tuple[object, ...]]:
    words = [Outcome(number).word for number in row.outcome.tolist()]
    columns = (row.position.tolist(), row.key, words, row.stand_in_for, row.hashes.tolist())
    return [(row.row // rows_per_step, row.row, *line) for line in zip(*columns, strict=True)]


@pytest.fixture(autouse=True)
def processes_die_not_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of them take minutes


@pytest.mark.parametrize("first", range(0, ROUNDS, PER_TEST))
def test_each_position_exactly_once(tmp_path: Path, first: int) -> None:
    kills = resizes = 0
    for seed in range(first, first + PER_TEST):
        chance = random.Random(seed)
        run = new_run(chance, tmp_path / str(seed))
        ranks = chance.randint(1, 7)
        for _ in range(chance.randint(1, 5)):
            run.go_on(ranks, chance.randint(1, 4), chance.randint(0, 4), chance.choice(["log", "commit", "note"]))
            kills += 1
            again = chance.randint(1, 7)
            resizes, ranks = resizes + (again != ranks), again
        run.go_on(ranks, 3, None, "")
        assert run.finished

        verdict = check(run.log)
        batch = run.rows_per_step * run.plan.spec.row_size
        assert (verdict.ok, verdict.positions, verdict.duplicates, verdict.missing) == (True, run.steps * batch, 0, 0), seed

        unbroken = [run.make(number) for number in range(run.steps * run.rows_per_step)]
        lines = lines_of(run.log)
        assert lines == [line for row in unbroken for line in expected(row, run.rows_per_step)], seed
        assert Ledger.from_bytes(run.ledger).events() == Ledger(e for row in unbroken for e in row.events).events(), seed
        if isinstance(run.plan, Plan):
            consumed = {line[3] for line in lines}
            assert {f"k{n}" for n in range(run.plan.spec.samples)} - {f"k{n}" for n in run.bad} <= consumed, seed
    assert kills > 2 * PER_TEST
    assert resizes > PER_TEST


@pytest.mark.parametrize("off", [1, -1])
def test_a_cursor_that_is_off_is_found(tmp_path: Path, off: int) -> None:
    """A step left out is missing; one that is made again from another row on has two contents."""
    run = Run(Plan(PlanSpec(300, 1, 8)), frozenset(), 4, 9, tmp_path)
    run.go_on(2, 1, 4, "note")
    if off > 0:
        run.cursor += run.rows_per_step
    else:
        run.plan = Plan(PlanSpec(300, 2, 8))
        run.cursor -= run.rows_per_step
    run.go_on(3, 2, None, "")
    verdict = check(tmp_path)
    assert (verdict.ok, verdict.missing, verdict.duplicates) == (False, 32 if off > 0 else 0, 0 if off > 0 else 32)
