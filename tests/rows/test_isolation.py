"""Rows made in child processes: the same rows, and images that kill their decoder become outcomes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from swav_platform import child_process
from swav_platform.config import load
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.samples import Killers, read_samples
from swav_platform.images.decoding.confined import NoDecoderError
from swav_platform.rows import isolation
from swav_platform.rows.isolation import IsolatedMaker, killers_among
from swav_platform.rows.job import RowJob
from swav_platform.rows.layout import Row
from swav_platform.rows.make import view_hashes
from swav_platform.rows.produce import isolated_tables, parallel_tables, tables
from swav_platform.rows.table import SCHEMA, from_table

Deadly = Callable[[int, str], None]

KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def job(shards: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> RowJob:
    path = tmp_path_factory.mktemp("index")
    build_index(expand([str(shards)]), path)
    return RowJob(load(None, tiny), str(path))


def before_main(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """From now on children that make rows run `code` before their own."""
    head, tail = child_process._START.split("from importlib")
    code = f"if {{module!r}} == {isolation._CHILD!r}:\n" + "".join(f"    {line}\n" for line in code.splitlines())
    monkeypatch.setattr(child_process, "_START", f"{head}\n{code}from importlib{tail}")


@pytest.fixture
def deadly(job: RowJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Deadly:
    """deadly(sample, damage): from now on, a child that decodes that sample runs the damage, a line of code."""

    def make(sample: int, damage: str) -> None:
        [poison] = read_samples(Index.open(job.index).lines([sample])).values()
        assert isinstance(poison, bytes)
        (tmp_path / "poison").write_bytes(poison)
        code = (
            f"from swav_platform.rows import make\n"
            f"def fatal(data, *rest, decode=make.decode_reduced, poison=open({str(tmp_path / 'poison')!r}, 'rb').read()):\n"
            f"    if data == poison:\n"
            f"        {damage}\n"
            f"    return decode(data, *rest)\n"
            f"make.decode_reduced = fatal"
        )
        before_main(monkeypatch, code)

    return make


def isolated(job: RowJob, rows: int) -> tuple[list[Row], Killers]:
    made, found = [], {}
    for table, killers in isolated_tables(job, range(rows), job.killers):
        made.append(from_table(table))
        found |= killers
    return made, found


def plain(job: RowJob, rows: int) -> list[Row]:
    return [from_table(table) for table in tables(job, range(rows))]


def test_the_ways_of_ray_of_torchrun_and_of_the_preview_give_the_same_bytes(job: RowJob) -> None:
    """In the process itself; in isolation, as after a death; in parallel children."""
    here = list(tables(job, range(6)))
    ways: list[Iterator[pa.Table]] = [
        (table for table, _ in isolated_tables(job, range(6), {})),
        parallel_tables(job, range(6), 2),
        parallel_tables(job, range(6), 1),
    ]
    for way in ways:
        made = list(way)
        assert len(made) == len(here)
        for a, b in zip(here, made, strict=True):
            assert b.schema == SCHEMA
            assert a.drop_columns("costs").equals(b.drop_columns("costs"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (KILL, "SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os; os._exit(7)", "exit code 7"),
    ],
)
def test_what_kills_its_decoder_becomes_an_outcome(job: RowJob, deadly: Deadly, damage: str, words: str) -> None:
    before = plain(job, 4)
    sample = int(before[2].sample[3])
    deadly(sample, damage)
    made, found = isolated(job, 4)
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


def test_parallel_rows_survive_it_too_and_stay_in_order(job: RowJob, deadly: Deadly) -> None:
    before = plain(job, 12)
    sample = int(before[5].sample[0])
    deadly(sample, KILL)
    made = [from_table(table) for table in parallel_tables(job, range(12), 2)]
    assert [row.row for row in made] == list(range(12))
    [event] = [event for row in made for event in row.events]
    assert (event.sample, event.outcome) == (sample, Outcome.DECODE_CRASH)
    alike = [int((view_hashes(a) == view_hashes(b)).sum()) for a, b in zip(before, made, strict=True)]
    assert alike == [8 - (number == 5) for number in range(12)]


def test_a_child_that_does_not_answer_is_killed(job: RowJob, deadly: Deadly, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = int(plain(job, 1)[0].sample[6])
    deadly(sample, "import time; time.sleep(1000)")
    monkeypatch.setattr(isolation, "SILENCE", 3.0)
    [row], found = isolated(job, 1)
    assert list(found) == [sample]
    assert row.outcome[6] == Outcome.DECODE_CRASH
    assert "within 3 s" in row.events[0].detail


def test_an_image_that_takes_too_much_memory_is_told_from_one_that_crashes(job: RowJob, deadly: Deadly) -> None:
    sample = int(plain(job, 1)[0].sample[1])
    deadly(sample, "import numpy; numpy.zeros(2**33, numpy.uint8).fill(1)")
    [row], found = isolated(job, 1)
    assert row.outcome[1] == Outcome.DECODE_MEMORY
    assert not found, "it could be refused without a death"


def test_one_death_with_another_cause_is_forgiven(job: RowJob, deadly: Deadly, tmp_path: Path) -> None:
    sample = int(plain(job, 1)[0].sample[5])
    first = tmp_path / "first"
    deadly(sample, f"import os, pathlib; p = pathlib.Path({str(first)!r}); p.exists() or (p.touch(), os.kill(os.getpid(), 9))")
    [row], found = isolated(job, 1)
    assert first.exists()
    assert not found
    assert not row.events


def test_children_that_die_before_their_first_sample_are_not_tried_for_ever(job: RowJob, monkeypatch: pytest.MonkeyPatch) -> None:
    before_main(monkeypatch, "from swav_platform.rows import child; child.make_row = lambda *_: os._exit(3)")
    with pytest.raises(RuntimeError, match="exit code 3"):
        isolated(job, 1)


def test_what_reading_raises_comes_through(job: RowJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swav_platform.rows.fetch.read_samples", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        isolated(job, 1)
    with pytest.raises(ZeroDivisionError):
        list(parallel_tables(job, range(4), 2))


@pytest.mark.parametrize(
    ("raised", "expected"), [("ValueError('odd')", RuntimeError), ("confined.NoDecoderError('odd')", NoDecoderError)]
)
def test_what_the_child_raises_comes_through(
    job: RowJob, monkeypatch: pytest.MonkeyPatch, raised: str, expected: type[Exception]
) -> None:
    code = f"def fail(*_):\n    raise {raised}\nchild.make_row = fail"
    before_main(monkeypatch, f"from swav_platform.images.decoding import confined\nfrom swav_platform.rows import child\n{code}")
    with pytest.raises(expected, match="odd"):
        isolated(job, 1)


def test_a_warm_child_serves_many_rows(job: RowJob) -> None:
    maker, plan = IsolatedMaker(job.config), job.plan()
    seen = set()
    for number in range(3):
        fetch: Any = isolation_fetch(job, number)
        maker.table(plan.row(number), fetch, plan.replacement, {})
        assert maker._child is not None
        seen.add(maker._child.pid)
    assert len(seen) == 1
    maker.close()
    maker = None  # type: ignore[assignment]
    assert not Path(f"/proc/{seen.pop()}").exists()


def isolation_fetch(job: RowJob, number: int) -> Any:
    from swav_platform.rows.fetch import with_bytes

    [(_, fetch)] = with_bytes(job, [number])
    return fetch


def test_who_stops_taking_rows_leaves_no_process(job: RowJob) -> None:
    others = children()
    made = parallel_tables(job, range(40), 2)
    next(made)
    started = children() - others
    assert started
    made.close()
    del made
    until = time.monotonic() + 10
    while started & children() and time.monotonic() < until:
        time.sleep(0.05)
    assert not started & children()


def children() -> set[int]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}
