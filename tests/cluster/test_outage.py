"""Storages that fail during a run on Ray: it waits, it stops with nothing registered, and a shard that is gone can be replaced."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swav_platform.cluster.pretrain import Watcher, pretrain
from swav_platform.cluster.stream import open_streams, rank_rows
from swav_platform.config import Config, load
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.index.sources import expand
from swav_platform.data.ledger.ledger import Ledger
from swav_platform.errors import UserError
from swav_platform.methods.comm import LocalComm
from swav_platform.rows.job import RowJob
from swav_platform.rows.produce import rows as rows_of
from swav_platform.runs.folder import RunFolder
from swav_platform.runs.health_file import read_health
from swav_platform.training.loop import train

pytestmark = pytest.mark.stack

STEPS = 32  # several segments, of which two are made ahead


class Place:
    """A copy of the shards that can be taken away, and a folder of runs."""

    def __init__(self, folder: Path, shards: Path, tiny: list[str]) -> None:
        self.folder, self.data, self._away, self._tiny = folder, folder / "data", folder / "away", tiny
        shutil.copytree(shards, self.data)

    def config(self, name: str, *more: str) -> Config:
        where = [f"data.sources={json.dumps([str(self.data)])}", f"run.out={self.folder / 'runs'}", f"run.name={name}"]
        return load(None, [*self._tiny, f"train.steps={STEPS}", "data.tasks=1", *where, *more])

    def take(self, name: str = "") -> None:
        (self.data / name).rename(self._away)

    def give_back(self, name: str = "") -> None:
        self._away.rename(self.data / name)


@pytest.fixture(scope="module")
def place(shards: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("outage"), shards, tiny)


@pytest.fixture(scope="module")
def calm(place: Place) -> list[float]:
    """Losses of an undisturbed run in this process."""
    config = place.config("calm")
    build_index(expand([str(place.data)]), place.folder / "index")
    index = Index.open(place.folder / "index")
    job = RowJob(config, str(place.folder / "index"))
    run = place.folder / "calm"
    train(
        config,
        samples=index.samples,
        index_digest=index.digest,
        rows=lambda first, last: rows_of(job, first, last),
        comm=LocalComm(),
        run_dir=run,
        resume=False,
    )
    return RunFolder(run).losses()


def at_first_checkpoint(run: RunFolder, strike: Callable[[], None]) -> threading.Thread:
    def wait_and_strike() -> None:
        wait_for(lambda: any(run.path.glob("checkpoints/*/MANIFEST.json")))
        strike()

    thread = threading.Thread(target=wait_and_strike, daemon=True)
    thread.start()
    return thread


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_a_run_waits_for_its_shards_and_learns_the_same(place: Place, calm: list[float], local_ray: None) -> None:
    run, seen = RunFolder(place.folder / "runs" / "patient"), list[str]()

    def outage() -> None:
        place.take()
        wait_for(lambda: (found := read_health(run.path)) is not None and found.state == "waiting")
        seen.append(str(read_health(run.path)))
        place.give_back()

    striker = at_first_checkpoint(run, outage)
    pretrain(place.config("patient"))
    striker.join()
    assert seen[0].startswith(f"waiting for {place.data}/")
    assert run.losses() == calm, "bit for bit"
    assert Ledger.read(run.ledger).outcomes() == {}
    assert (found := read_health(run.path)) is None or found.state != "waiting"


@pytest.mark.long
def test_a_run_without_a_shard_stops_and_can_be_resumed(place: Place, calm: list[float], local_ray: None) -> None:
    run, shard, told = RunFolder(place.folder / "runs" / "stopped"), "pictures-000001.tar", list[str]()
    striker = at_first_checkpoint(run, lambda: place.take(shard))
    with pytest.raises(UserError, match=rf"{shard} can't be used .*--resume"):
        pretrain(place.config("stopped", "data.storage_patience=2"), watch=Watcher(told=told.append))
    striker.join()
    place.give_back(shard)
    assert not run.package.exists()
    assert run.summary() is None
    assert not any(line.startswith("restart") for line in told), "another group of workers would not find the shard either"
    assert 2 <= len(run.losses()) < STEPS
    result = pretrain(place.config("stopped"), resume=True)
    assert result["model_uri"]
    assert result["quarantined"] == 0
    assert run.losses() == calm, "bit for bit"


def test_a_shard_that_is_gone_is_replaced_if_so_wanted(place: Place, local_ray: None) -> None:
    build_index(expand([str(place.data)]), place.folder / "replaced")
    place.take("pictures-000000.tar")
    config = place.config("replaced", "data.storage_patience=1", "data.missing_shards=replace")
    rows = list(rank_rows(open_streams(RowJob(config, str(place.folder / "replaced")), 0, 16, 1), 0))
    place.give_back("pictures-000000.tar")
    assert [row.row for row in rows] == list(range(16))
    events = [event for row in rows for event in row.events]
    assert {Path(event.shard).name for event in events} == {"pictures-000000.tar"}
    assert {event.outcome.word for event in events if event.attempt == 0} == {"read_error"}
    assert all((row.weight > 0).any() for row in rows), "images of the other shard"
