"""Rows made in child processes: the same rows, and images that kill whoever decodes them become outcomes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swav_platform.config import load
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.samples import Killers, read_samples
from swav_platform.images.decoding.decode import decode_reduced
from swav_platform.rows import make as row_module
from swav_platform.rows.isolation import killers_among
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row
from swav_platform.rows.make import view_hashes
from swav_platform.rows.produce import guarded_tables, tables
from swav_platform.rows.table import from_table

Damage = Callable[[], None]


@pytest.fixture(scope="module")
def job(shards: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> RowJob:
    path = tmp_path_factory.mktemp("index")
    build_index(expand([str(shards)]), path)
    return RowJob(load(None, tiny), str(path))


@pytest.fixture
def deadly(job: RowJob, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Damage], None]:
    """deadly(sample, damage): from now on, decoding that sample does the damage."""

    def make(sample: int, damage: Damage) -> None:
        [poison] = read_samples(Index.open(job.index).lines([sample])).values()

        def fatal(data: bytes, *rest: Any) -> Any:
            if data == poison:
                damage()
            return decode_reduced(data, *rest)

        monkeypatch.setattr(row_module, "decode_reduced", fatal)

    return make


def guarded(job: RowJob, rows: int) -> tuple[list[Row], Killers]:
    made, found = [], {}
    for table, killers in guarded_tables(job, range(rows), job.killers):
        made.append(from_table(table))
        found |= killers
    return made, found


def test_the_same_rows_as_without_a_guard(job: RowJob) -> None:
    plain = [from_table(table) for table in tables(job, range(4), {})]
    made, found = guarded(job, 4)
    assert not found
    for a, b in zip(plain, made, strict=True):
        assert (a.row, a.key, a.stand_in_for) == (b.row, b.key, b.stand_in_for)
        assert np.array_equal(view_hashes(a), view_hashes(b))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        (lambda: os._exit(7), "exit code 7"),
    ],
)
def test_what_kills_its_decoder_becomes_an_outcome(
    job: RowJob, deadly: Callable[[int, Damage], None], damage: Damage, words: str
) -> None:
    before = [from_table(table) for table in tables(job, range(4), {})]
    sample = int(before[2].sample[3])
    deadly(sample, damage)
    made, found = guarded(job, 4)
    assert list(found) == [sample]
    slot = made[2]
    assert slot.outcome[3] == Outcome.DECODE_CRASH
    assert slot.stand_in_for[3] == before[2].key[3]
    [event] = [event for row in made for event in row.events]
    assert (event.position, event.sample, event.key) == (2 * 8 + 3, sample, before[2].key[3])
    assert words in event.detail
    for a, b in zip(before, made, strict=True):
        alike = np.array(view_hashes(a) == view_hashes(b))
        assert alike.sum() == 8 - (a.row == 2)
    again = [from_table(table) for table in tables(job, range(4), killers_among(Ledger([event]).events()))]
    assert [view_hashes(row).tolist() for row in again] == [view_hashes(row).tolist() for row in made], "a resumed run knows"
    assert again[2].events == made[2].events


def test_an_image_that_takes_too_much_memory_is_told_from_one_that_crashes(
    job: RowJob, deadly: Callable[[int, Damage], None]
) -> None:
    sample = int(next(iter(map(from_table, tables(job, [0], {})))).sample[1])
    deadly(sample, lambda: np.zeros(2**33, np.uint8).fill(1))
    [row], found = guarded(job, 1)
    assert row.outcome[1] == Outcome.DECODE_MEMORY
    assert not found, "it could be refused without a death"


def test_one_death_by_another_hand_is_forgiven(job: RowJob, deadly: Callable[[int, Damage], None], tmp_path: Path) -> None:
    sample = int(next(iter(map(from_table, tables(job, [0], {})))).sample[5])
    first = tmp_path / "first"

    def once() -> None:
        if not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    deadly(sample, once)
    [row], found = guarded(job, 1)
    assert not found
    assert not row.events


def test_children_that_die_before_their_first_sample_are_not_tried_for_ever(job: RowJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swav_platform.rows.isolation.make_row", lambda *_: os._exit(3))
    with pytest.raises(RuntimeError, match="exit code 3"):
        guarded(job, 1)


def test_what_reading_raises_comes_through(job: RowJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swav_platform.rows.fetch.read_samples", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        guarded(job, 1)
