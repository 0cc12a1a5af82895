"""Rows through Ray Data: order, shares of ranks, seams, equality with the plain function."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from swav_platform.cluster import stream
from swav_platform.config import load
from swav_platform.data.index import Index, build_index
from swav_platform.data.sources import expand
from swav_platform.images.row import Row, view_hashes


@pytest.fixture(scope="module")
def job(shards: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> stream.StreamJob:
    path = tmp_path_factory.mktemp("index")
    build_index(expand([str(shards)]), path)
    return stream.StreamJob(load(None, tiny), str(path), Index.open(path).samples, tasks=2)


def test_segments_keep_the_round_robin_over_seams() -> None:
    for ranks in (1, 2, 3, 5):
        for first in (0, 7):
            bounds = stream.segment_bounds(first, first + 100, 16, ranks)
            assert bounds[0][0] == first
            assert bounds[-1][1] == first + 100
            assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
            assert all((b - a) % ranks == 0 for a, b in bounds[:-1])


def test_rows_are_a_function_of_their_numbers(job: stream.StreamJob) -> None:
    together = {row.row: view_hashes(row) for row in stream.rows(job, 0, 8)}
    alone = next(stream.rows(job, 5, 6))
    assert np.array_equal(view_hashes(alone), together[5])
    assert len({int(h) for hashes in together.values() for h in hashes}) == 8 * 8, "no two positions have the same views"


@pytest.mark.stack
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_rank_gets_its_rows_in_order(job: stream.StreamJob, local_ray: None, ranks: int) -> None:
    first, last = 3, 46  # neither a multiple of the ranks nor of the segment
    segments = stream.Segments.remote(job, first, last, ranks)
    bounds = stream.segment_bounds(first, last, job.config.data.segment, ranks)
    taken: list[list[Row]] = [[] for _ in range(ranks)]
    threads = [
        threading.Thread(target=lambda rank=rank: taken[rank].extend(stream.rank_rows(segments, bounds, rank, ranks)))
        for rank in range(ranks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for rank, rows in enumerate(taken):
        assert [row.row for row in rows] == [k for k in range(first, last) if (k - first) % ranks == rank]
    sent = taken[0][0]
    plain = next(stream.rows(job, first, first + 1))
    assert np.array_equal(view_hashes(sent), view_hashes(plain))
    assert not sent.views[0].flags.writeable, "rows are looked at where Ray keeps them, not copied"
