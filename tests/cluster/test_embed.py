"""Embedding on Ray: any number of actors, stopped and killed, makes the set that one process makes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import psutil
import pytest

from swav_platform.cluster.batch.embed import on_cluster
from swav_platform.config import ImagePolicy
from swav_platform.data.index.build import build_index
from swav_platform.data.index.lookup import Index
from swav_platform.data.sets.layout import report_file
from swav_platform.data.sets.read import has_set
from swav_platform.data.sets.write import begin
from swav_platform.evaluation.embed import embed, embed_job
from swav_platform.evaluation.parts import EmbedJob
from swav_platform.runs.storage import storage_of
from tests.evaluation.test_embed import contents
from tests.evaluation.test_embed import package as package  # a fixture
from tests.makers import smooth, write_tar

pytestmark = pytest.mark.stack


def test_stopped_killed_and_resumed_with_other_numbers_of_actors(package: Path, tmp_path: Path, local_ray: None) -> None:
    write_tar(tmp_path / "a.tar", [(f"{n:03d}.jpg", smooth(n)) for n in range(640)])
    build_index([str(tmp_path / "a.tar")], tmp_path / "index")
    index = Index.open(tmp_path / "index")
    job = embed_job(package, index, tmp_path / "set", ImagePolicy())
    begin(storage_of(job.target), job.recipe)
    for workers, taken in ((1, 2), (2, 3)):
        parts = on_cluster(workers)(job, missing(job), lambda samples: None)
        assert len(list(islice(parts, taken))) == taken
        if workers == 2:
            kill_an_actor()
            next(parts, None)  # type: ignore[call-overload]
        parts.close()  # type: ignore[attr-defined]  # as when the command is interrupted
        assert not has_set(tmp_path / "set")
        storage_of(job.target).delete([report_file(number) for number in range(2 * workers, 10)])  # actors may have gone on
    assert embed(job, on_cluster(3))["samples"] == 640
    embed(embed_job(package, index, tmp_path / "alone", ImagePolicy()))
    assert contents(tmp_path / "set") == contents(tmp_path / "alone")


def missing(job: EmbedJob) -> list[int]:
    there = begin(storage_of(job.target), job.recipe)
    return [number for number in range(len(job.recipe.parts)) if number not in there]


def kill_an_actor() -> None:
    """SIGKILL for one of the processes that embed, unless they have ended already."""
    names = ((process, " ".join(process.cmdline())) for process in psutil.Process().children(recursive=True))
    for process in [process for process, name in names if "PartActor" in name][:1]:
        process.kill()
